import pytest

from stages import artifacts, evaluate, verify_int8
from stages.errors import UserError
from tests.test_verify import change_one_weight


def test_what_the_int8_variant_loses_is_measured(models):
    verify_int8.main("cnn")
    verification = artifacts.read_json(artifacts.verification_int8("cnn"))
    evaluate.main("cnn")
    evaluation = artifacts.read_json(artifacts.evaluation("cnn"))
    assert verification["samples"] == 297
    assert verification["accuracy_low"] < verification["accuracy"] < verification["accuracy_high"]
    assert verification["accuracy_loss"] == pytest.approx(evaluation["accuracy"] - verification["accuracy"])
    assert 0 < verification["max_abs_difference"] < 1
    sizes = [artifacts.onnx(name).stat().st_size for name in ("cnn_int8", "cnn")]
    assert verification["size_ratio"] == sizes[0] / sizes[1]
    assert set(verification["robustness"]) == {"rotation", "scale", "shift", "thin_strokes", "thick_strokes"}


def test_a_loss_above_the_limit_fails_but_is_written_down(models, change):
    change_one_weight("cnn_int8", "network.output.bias_quantized", 2**24)
    with pytest.raises(UserError, match=r"cnn: .* right in int8, .* in float32, .* less; allowed: 0.05"):
        verify_int8.main("cnn")
    verification = artifacts.read_json(artifacts.verification_int8("cnn"))
    assert verification["accuracy_loss"] > 0.05
    assert verification["changed_labels"] > 0


def test_a_loss_within_the_limit_passes(models, change):
    change_one_weight("cnn_int8", "network.output.bias_quantized", 2**24)
    change({"int8.accuracy_loss": 1.0})
    verify_int8.main("cnn")
