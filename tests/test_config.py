"""The configuration of models: config.pbtxt, completed from the ONNX model."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.config import config_to_dict
from serving.errors import RequestError, StartError
from serving.models import Model, load_versions, read_bytes
from tests.foreign_models import save_model

INPUT = 'input { name: "x", data_type: TYPE_FP32, dims: [ 2 ] }\n'
OUTPUT = 'output { name: "result", data_type: TYPE_FP32, dims: [ 2 ] }\n'
TENSORS = INPUT + OUTPUT


def load(tmp_path: Path, config: str | None, shape: tuple = ("batch", 2), operator: str = "Neg", **options) -> Model:
    """Load a model with this configuration."""
    save_model(tmp_path / "m" / "1" / "model.onnx", operator, "x", [*shape], config=config, **options)
    return load_versions(tmp_path / "m", read_bytes)[-1]


def test_a_model_without_configuration_is_completed_as_by_triton(tmp_path):
    config = config_to_dict(load(tmp_path, None, shape=("batch", "n", 3)).config)
    assert (config["max_batch_size"], config["dynamic_batching"]["preferred_batch_size"]) == (4, [4])
    assert [(it["name"], it["data_type"], it["dims"]) for it in config["input"]] == [("x", "TYPE_FP32", [-1, 3])]
    assert [(it["name"], it["dims"]) for it in config["output"]] == [("result", [-1, 3])]
    assert [(it["name"], it["count"], it["kind"]) for it in config["instance_group"]] == [("m", 2, "KIND_CPU")]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_a_model_without_a_variable_first_dimension_has_no_batches(tmp_path):
    model = load(tmp_path, None, shape=(2, 2))
    assert model.config.max_batch_size == 0
    assert model.inputs["x"].shape == (2, 2)


def test_a_scalar_per_image_gets_a_dimension_by_reshape(tmp_path):
    model = load(tmp_path, None, shape=("batch",))
    assert model.inputs["x"].shape == (-1, 1)
    assert model.run({"x": np.ones((3, 1), np.float32)})["result"].tolist() == [[-1], [-1], [-1]]


def test_inputs_and_outputs_are_reshaped(tmp_path):
    config = """
    max_batch_size: 8
    input { name: "x", data_type: TYPE_FP32, dims: [ 4, 1 ], reshape: { shape: [ 2, 2 ] } }
    output { name: "result", data_type: TYPE_FP32, dims: [ 4 ], reshape: { shape: [ 2, 2 ] } }
    """
    model = load(tmp_path, config, shape=("batch", 2, 2))
    x = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
    assert model.inputs["x"].shape == (-1, 4, 1)
    assert model.run({"x": x})["result"].tolist() == (-x[:, :, 0]).tolist()


def test_a_variable_length_can_be_reshaped(tmp_path):
    config = """
    max_batch_size: 8
    input { name: "x", data_type: TYPE_FP32, dims: [ -1 ], reshape: { shape: [ -1, 1 ] } }
    """
    model = load(tmp_path, config, shape=("batch", "n", 1))
    assert model.run({"x": np.ones((2, 3), np.float32)})["result"].shape == (2, 3, 1)


def test_the_number_of_threads_and_another_file_name_are_configured(tmp_path):
    config = (
        'default_model_filename: "other.onnx"\nparameters { key: "intra_op_thread_count" value { string_value: "3" } }'
    )
    save_model(tmp_path / "m" / "1" / "other.onnx", "Neg", "x", ["batch"], config=config)
    (model,) = load_versions(tmp_path / "m", read_bytes)
    assert model.session.get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", ["10"]),
        ("latest { num_versions: 2 }", ["9", "10"]),
        ("all {}", ["1", "9", "10"]),
        ("specific { versions: [ 1, 9, 11 ] }", ["1", "9"]),
    ],
)
def test_the_version_policy_selects_versions(tmp_path, policy, versions):
    for version in (10, 9, 1, "01", "x"):
        save_model(
            tmp_path / "m" / f"{version}" / "model.onnx", "Neg", "x", ["batch"], config=f"version_policy {{ {policy} }}"
        )
    assert [model.version for model in load_versions(tmp_path / "m", read_bytes)] == versions


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true"])
def test_the_model_is_warmed_up(tmp_path, data):
    inputs = f'inputs {{ key: "x" value {{ data_type: TYPE_FP32, dims: [ 2 ], {data} }} }}'
    load(tmp_path, f'max_batch_size: 8\nmodel_warmup {{ name: "w", batch_size: 2, {inputs} }}')


def test_a_warm_up_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.models.MAX_WARMUP_SECONDS", 0)
    inputs = 'inputs { key: "x" value { data_type: TYPE_FP32, dims: [ 2 ] } }'
    with pytest.raises(StartError, match="model_warmup.w: expected at most 0 seconds, got more"):
        load(tmp_path, f'max_batch_size: 8\nmodel_warmup {{ name: "w", count: 4000000000, {inputs} }}')


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("max_batch_size: many", "expected a Triton model configuration, got: "),
        ("no_such_field: 1", 'Message type "inference.ModelConfig" has no field named "no_such_field"'),
        ('name: "other"', "name: expected 'm', got 'other'"),
        ('backend: "python"', "backend: expected 'onnxruntime', got 'python'"),
        ('platform: "tensorrt_plan"', "platform: expected 'onnxruntime_onnx', got 'tensorrt_plan'"),
        ("sequence_batching {}", "expected only fields that this server supports, got sequence_batching"),
        ("ensemble_scheduling {}", "got ensemble_scheduling"),
        ("response_cache { enable: true }", "got response_cache"),
        ("dynamic_batching { preserve_ordering: true }", "got dynamic_batching.preserve_ordering"),
        (
            "max_batch_size: 4\ndynamic_batching { preferred_batch_size: [ 4, 8 ] }",
            "dynamic_batching.preferred_batch_size: expected 1 <= x <= max_batch_size = 4, got 8",
        ),
        ("instance_group { gpus: [ 0 ] }", "got instance_group.gpus"),
        ("instance_group { kind: KIND_GPU }", "instance_group.kind: expected KIND_AUTO or KIND_CPU, got KIND_GPU"),
        ('parameters { key: "x" value { string_value: "" } }', "got parameters.x"),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "two" } }',
            "parameters.intra_op_thread_count: expected an integer >= 0, got 'two'",
        ),
        ('input { name: "x", data_type: TYPE_FP32, dims: [ 2 ], optional: true }', "got input.optional"),
        ('input { name: "y", data_type: TYPE_FP32, dims: [ 2 ] }', "expected only tensors of the ONNX model, x, got y"),
        (
            'input { name: "x", data_type: TYPE_INT8, dims: [ 2 ] }',
            "x.data_type: expected TYPE_FP32, as in the ONNX model, got TYPE_INT8",
        ),
        (
            "max_batch_size: 1\n" + INPUT.replace("[ 2", "[ 3"),
            "x: expected the ONNX model's shape [-1, 2], got [-1, 3]",
        ),
        (
            "max_batch_size: 1\n" + INPUT.replace("[ 2 ] }", "[ 3, 2 ], reshape: { shape: [ 2 ] } }"),
            "x.reshape: expected as many elements",
        ),
        (
            "version_policy { specific { versions: [ 7 ] } }",
            "expected a version that the version_policy selects, got [1]",
        ),
        ('model_warmup { name: "w" }', "model_warmup.w: inputs: expected x, got "),
        (
            "max_batch_size: 2\n" + OUTPUT.replace(" }", ', label_filename: "labels.txt" }'),
            "labels.txt: expected a readable file, got: No such file or directory",
        ),
    ],
)
def test_an_invalid_or_unsupported_configuration_is_refused_with_the_reason(tmp_path, config, error):
    with pytest.raises(StartError, match=re.escape(error)) as caught:
        load(tmp_path, config)
    assert "\n" not in str(caught.value)


def test_a_batch_size_of_a_model_with_a_fixed_first_dimension_is_refused(tmp_path):
    with pytest.raises(StartError, match=re.escape("x: expected the ONNX model's shape [2, 2], got [-1, 2]")):
        load(tmp_path, f"max_batch_size: 8\n{TENSORS}", shape=(2, 2))


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.COMPLEX64])
def test_a_datatype_that_the_protocol_lacks_is_refused(tmp_path, kind):
    with pytest.raises(StartError, match=r"(expected one of tensor\(bool\), .*, got tensor|expected an ONNX model)"):
        load(tmp_path, None, operator="Identity", kind=kind)


def test_external_data_are_refused(tmp_path, monkeypatch):
    """They would escape the lock, and could lie anywhere."""
    file = tmp_path / "m" / "1" / "model.onnx"
    save_model(file, "Add", "x", ["batch", 1000], table=np.ones(1000, np.float32))
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights", size_threshold=0)
    monkeypatch.chdir(file.parent)
    with pytest.raises(StartError, match=f"External data .*{os.devnull}/weights"):
        load_versions(tmp_path / "m", read_bytes)


def test_a_model_that_fails_is_reported_as_an_invalid_request(tmp_path):
    model = load(
        tmp_path, None, operator="Div", kind=TensorProto.INT32, shape=("batch",), table=np.array([1], np.int32)
    )
    with pytest.raises(RequestError, match="m: expected inputs that the model can process, got: "):
        model.run({"x": np.zeros((1, 3), np.int32)})


def test_outputs_of_another_batch_size_are_refused(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "result")]
    node = helper.make_node("Concat", ["x", "x"], ["result"], axis=0)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    file = tmp_path / "m" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)
    (model,) = load_versions(tmp_path / "m", read_bytes)
    with pytest.raises(RequestError, match="m: expected outputs of the inputs' batch size, 3, got 6"):
        model.run({"x": np.zeros((3, 2), np.float32)})
