import json

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from stages import artifacts, export, model_repository, params


@pytest.fixture(params=["fnn", "cnn"])
def model(models, request) -> str:
    """A trained and exported model."""
    return request.param


def signature(values) -> list[tuple[str, int, list]]:
    """Return the names, element types and dimensions of a graph's inputs or outputs."""
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def test_the_onnx_file_has_the_documented_inputs_outputs_and_operators(model):
    path = artifacts.onnx(model)
    onnx.checker.check_model(path, full_check=True)
    onnx_model = onnx.load(path, load_external_data=False)
    assert signature(onnx_model.graph.input) == [("image", onnx.TensorProto.UINT8, ["batch", 1, 28, 28])]
    assert signature(onnx_model.graph.output) == [
        ("label", onnx.TensorProto.INT64, ["batch"]),
        ("probabilities", onnx.TensorProto.FLOAT, ["batch", 10]),
    ]
    assert {node.domain for node in onnx_model.graph.node} == {""}
    assert not onnx_model.functions
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


def test_the_metadata_props_name_classes_inputs_and_data_set(model):
    metadata = model_repository.read_metadata(onnx.load(artifacts.onnx(model)))
    data = params.load_params().data
    assert metadata["model_name"] == model
    assert json.loads(metadata["classes"]) == data.classes
    assert "uint8 [batch, 1, 28, 28]" in metadata["input"]
    assert metadata["license"] == "MIT"
    assert metadata["dataset"] == "digits"
    assert json.loads(metadata["dataset_sha256"]) == data.sha256
    assert json.loads(metadata["frameworks"]).keys() == {"torch", "onnx"}


def test_the_graph_holds_no_stack_traces_and_no_paths(model):
    onnx_model = onnx.load(artifacts.onnx(model))
    del onnx_model.metadata_props[:]  # the project's own text
    for tensor in onnx_model.graph.initializer:
        tensor.ClearField("raw_data")
    text = str(onnx_model)
    assert "metadata_props" not in text
    assert "doc_string" not in text
    for trace in ("/", "\\\\", ".py", "stages", "+cu", "+cpu"):
        assert trace not in text


def test_the_same_weights_give_the_same_bytes(model):
    first = artifacts.onnx(model).read_bytes()
    torch.manual_seed(99)
    export.main(model)
    assert artifacts.onnx(model).read_bytes() == first


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_size_is_dynamic(model, batch):
    images = np.random.default_rng(0).integers(256, size=(batch, 1, 28, 28), dtype=np.uint8)
    label, probabilities = InferenceSession(artifacts.onnx(model)).run(None, {"image": images})
    assert (label.dtype, label.shape) == (np.int64, (batch,))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (batch, 10))
    assert (label == probabilities.argmax(axis=1)).all()
