import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnxruntime import InferenceSession

from stages import artifacts, inference, model_repository, params, quantize


@pytest.fixture(params=["fnn", "cnn"])
def model(models, request) -> str:
    """A model with an int8 variant."""
    return request.param


def test_the_int8_variant_has_the_same_inputs_and_outputs(model):
    inference.open_session(artifacts.onnx(artifacts.int8_name(model)), class_count=10)  # raises for others


def test_weights_are_int8_with_a_scale_per_channel(model):
    graph = onnx.load(artifacts.onnx(artifacts.int8_name(model))).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    assert layers
    for node in layers:
        weights, scales = (tensors[name] for name in dequantized[node.input[1]].input[:2])
        biases = tensors[node.input[2]]
        assert weights.data_type == TensorProto.INT8
        assert biases.data_type == TensorProto.FLOAT
        assert scales.dims == biases.dims  # one for each channel


def test_probabilities_are_positive_and_sum_to_1(model):
    images = np.random.default_rng(0).integers(256, size=(100, 1, 28, 28), dtype=np.uint8)
    session = inference.open_session(artifacts.onnx(artifacts.int8_name(model)), class_count=10)
    _, probabilities = inference.predict(session, images, 100)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100), abs=1e-6)
    assert (probabilities > 0).all()


def test_all_operators_are_standard(model):
    assert {node.domain for node in onnx.load(artifacts.onnx(artifacts.int8_name(model))).graph.node} == {""}


def test_the_metadata_props_name_the_float32_model_and_the_calibration(model):
    metadata = model_repository.read_metadata(onnx.load(artifacts.onnx(artifacts.int8_name(model))))
    original = model_repository.read_metadata(onnx.load(artifacts.onnx(model)))
    assert metadata.keys() - original.keys() == {"quantization"}
    assert metadata["model_name"] == f"{model}_int8"
    assert metadata["quantization"] == f"int8, static, of {model}, calibrated on 1000 training images"
    assert json.loads(metadata["classes"]) == params.load_params().data.classes


def test_the_same_model_gives_the_same_bytes(model):
    first = artifacts.onnx(artifacts.int8_name(model)).read_bytes()
    quantize.main(model)
    assert artifacts.onnx(artifacts.int8_name(model)).read_bytes() == first


def test_a_number_of_calibration_images_above_the_training_sets_size_takes_all(models, change, monkeypatch):
    change({"int8.calibration_images": 100_000})
    counts = []
    monkeypatch.setattr(quantize, "quantize_int8", lambda model, images: counts.append(len(images)) or model)
    quantize.main("fnn")
    assert counts == [1500]


def test_swapping_pool_and_relu_keeps_labels_and_probabilities(model):
    images = np.random.default_rng(0).integers(256, size=(20, 1, 28, 28), dtype=np.uint8)
    float32 = onnx.load(artifacts.onnx(model))
    before = InferenceSession(float32.SerializeToString()).run(None, {"image": images})
    swapped = quantize.pool_after_relu(float32)
    onnx.checker.check_model(swapped, full_check=True)
    after = InferenceSession(swapped.SerializeToString()).run(None, {"image": images})
    assert (before[0] == after[0]).all()
    assert after[1] == pytest.approx(before[1], abs=1e-6)


def test_max_pools_run_in_int8_and_relus_are_fused(models):
    graph = onnx.load(artifacts.onnx("cnn_int8")).graph
    producers = {node.output[0]: node for node in graph.node}
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 2
    assert {producers[pool.input[0]].op_type for pool in pools} == {"DequantizeLinear"}
    assert "Relu" not in {node.op_type for node in graph.node}


def test_calibration_reads_every_image_once():
    images = np.arange(250 * 784, dtype=np.uint32).astype(np.uint8).reshape(250, 1, 28, 28)
    reader = quantize.CalibrationImages(images)
    batches = iter(reader.get_next, None)
    assert (np.concatenate([batch["image"] for batch in batches]) == images).all()


def test_the_int8_variants_probabilities_are_close_to_float32(model):
    images = np.random.default_rng(0).integers(256, size=(100, 1, 28, 28), dtype=np.uint8)
    float32, int8 = (
        InferenceSession(artifacts.onnx(name)).run(["probabilities"], {"image": images})[0]
        for name in (model, artifacts.int8_name(model))
    )
    assert 0 < np.abs(float32 - int8).mean() < 0.1
