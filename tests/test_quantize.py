import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnxruntime import InferenceSession

from stages import artifacts, params, quantize, repository, runtime


@pytest.fixture(params=["fnn", "cnn"])
def model(models, request) -> str:
    """A model with an int8 variant."""
    return request.param


def test_the_int8_variant_has_the_same_inputs_and_outputs(model):
    runtime.open_session(artifacts.onnx(artifacts.int8(model)), classes=10)  # which refuses others


def test_weights_are_int8_and_scaled_by_channel(model):
    graph = onnx.load(artifacts.onnx(artifacts.int8(model))).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    assert products
    for node in products:
        weights, scales = (tensors[name] for name in dequantized[node.input[1]].input[:2])
        assert weights.data_type == TensorProto.INT8
        assert scales.dims == tensors[dequantized[node.input[2]].input[0]].dims  # as many as biases, one a channel


def test_probabilities_sum_to_1_and_none_is_0(model):
    images = np.random.default_rng(0).integers(256, size=(100, 1, 28, 28), dtype=np.uint8)
    session = runtime.open_session(artifacts.onnx(artifacts.int8(model)), classes=10)
    _, probabilities = runtime.answers(session, images, 100)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100), abs=1e-6)
    assert (probabilities > 0).all()


def test_all_operators_are_standard(model):
    assert {node.domain for node in onnx.load(artifacts.onnx(artifacts.int8(model))).graph.node} == {""}


def test_it_is_told_what_it_was_made_from(model):
    metadata = repository.metadata(onnx.load(artifacts.onnx(artifacts.int8(model))))
    original = repository.metadata(onnx.load(artifacts.onnx(model)))
    assert metadata.keys() - original.keys() == {"quantization"}
    assert metadata["model_name"] == f"{model}_int8"
    assert metadata["quantization"] == f"int8, static, of {model}, calibrated on 1000 training images"
    assert json.loads(metadata["classes"]) == params.load().data.classes


def test_the_same_model_gives_the_same_bytes(model):
    first = artifacts.onnx(artifacts.int8(model)).read_bytes()
    quantize.main(model)
    assert artifacts.onnx(artifacts.int8(model)).read_bytes() == first


def test_more_calibration_images_than_there_are_is_all_of_them(models, change, monkeypatch):
    change({"int8.calibration_images": 10**6})
    counts = []
    monkeypatch.setattr(quantize, "quantize", lambda model, images: counts.append(len(images)) or model)
    quantize.main("fnn")
    assert counts == [1500]


def test_the_order_of_pool_and_relu_changes_no_answer(model):
    images = np.random.default_rng(0).integers(256, size=(20, 1, 28, 28), dtype=np.uint8)
    float32 = onnx.load(artifacts.onnx(model))
    before = InferenceSession(float32.SerializeToString()).run(None, {"image": images})
    swapped = quantize.pool_after_relu(float32)
    onnx.checker.check_model(swapped, full_check=True)
    after = InferenceSession(swapped.SerializeToString()).run(None, {"image": images})
    assert (before[0] == after[0]).all()
    assert after[1] == pytest.approx(before[1], abs=1e-6)


def test_pools_follow_relu_and_run_in_int8(models):
    graph = onnx.load(artifacts.onnx("cnn_int8")).graph
    makers = {node.output[0]: node for node in graph.node}
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 2
    assert {makers[pool.input[0]].op_type for pool in pools} == {"DequantizeLinear"}
    assert "Relu" not in {node.op_type for node in graph.node}  # each is in the range of its convolution's output


def test_calibration_hands_every_image_over_once():
    images = np.arange(250 * 784, dtype=np.uint32).astype(np.uint8).reshape(250, 1, 28, 28)
    reader = quantize.Calibration(images)
    batches = iter(reader.get_next, None)
    assert (np.concatenate([batch["image"] for batch in batches]) == images).all()


def test_the_int8_variant_answers_almost_as_the_float32_one(model):
    images = np.random.default_rng(0).integers(256, size=(100, 1, 28, 28), dtype=np.uint8)
    float32, int8 = (
        InferenceSession(artifacts.onnx(name)).run(["probabilities"], {"image": images})[0]
        for name in (model, artifacts.int8(model))
    )
    assert 0 < np.abs(float32 - int8).mean() < 0.1
