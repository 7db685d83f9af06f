import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages import artifacts, evaluate, verify
from stages.errors import UserError


@pytest.fixture
def exported(models) -> str:
    """The name of an exported model."""
    return "cnn"


def change_one_weight(model: str, name: str, difference: float) -> None:
    onnx_model = onnx.load(artifacts.onnx(model))
    tensor = next(tensor for tensor in onnx_model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += difference
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(onnx_model, artifacts.onnx(model))


def read_verification(model: str) -> dict:
    return artifacts.read_json(artifacts.verification(model))


def test_the_exported_model_predicts_like_the_trained_one(exported):
    verify.main(exported)
    verification = read_verification(exported)
    assert verification["samples"] == 297
    assert verification["label_disagreements"] == 0
    assert verification["max_abs_difference"] <= verification["tolerance"] == 1e-5
    evaluate.main(exported)
    assert verification["onnx_accuracy"] == artifacts.read_json(artifacts.evaluation(exported))["accuracy"]


def test_one_changed_weight_is_found(exported):
    change_one_weight(exported, "network.output.weight", 0.01)
    expected = "expected the labels of artifacts/cnn/weights.safetensors, and its probabilities within 1e-05, got: "
    with pytest.raises(UserError, match=f"^artifacts/model_repository/cnn/1/model.onnx: {expected}"):
        verify.main(exported)
    assert read_verification(exported)["max_abs_difference"] > 1e-5


def test_a_different_label_is_found(exported):
    change_one_weight(exported, "network.output.bias", 100.0)
    with pytest.raises(UserError, match=r"got: \d+ of 1,299 labels differ"):
        verify.main(exported)
    assert read_verification(exported)["label_disagreements"] > 0


def test_a_weight_of_nan_is_found(exported):
    change_one_weight(exported, "network.output.bias", np.nan)
    with pytest.raises(UserError, match="probabilities by up to nan$"):
        verify.main(exported)
    assert read_verification(exported)["max_abs_difference"] is None


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"", lambda content: b"no model"])
def test_a_corrupt_onnx_file_is_a_user_error(exported, damage):
    artifacts.onnx(exported).write_bytes(damage(artifacts.onnx(exported).read_bytes()))
    with pytest.raises(UserError, match="^artifacts/model_repository/cnn/1/model.onnx: expected a model for ONNX Run"):
        verify.main(exported)


def test_other_inputs_are_a_user_error(exported):
    onnx_model = onnx.load(artifacts.onnx(exported))
    onnx_model.graph.input[0].name = onnx_model.graph.node[0].input[0] = "pixels"
    onnx.save(onnx_model, artifacts.onnx(exported))
    with pytest.raises(UserError, match=r"expected the inputs and outputs \[\('image', .*, got \[\('pixels', "):
        verify.main(exported)


def test_a_missing_onnx_file_is_a_user_error(exported):
    artifacts.onnx(exported).unlink()
    with pytest.raises(UserError, match="model.onnx: expected a file, got none; `dvc repro` writes it$"):
        verify.main(exported)


def test_synthetic_images_are_black_white_and_noise():
    images = verify.synthetic_images(seed=0)
    assert images.shape == (1002, 1, 28, 28)
    assert (images[0] == 0).all()
    assert (images[1] == 255).all()
    assert images[2:].float().std() > 70
