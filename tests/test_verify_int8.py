import pytest

from stages import artifacts, evaluate, verify_int8
from stages.errors import UserError
from tests.test_verify import change_one_weight


def test_the_int8_variants_accuracy_drop_is_measured(models):
    verify_int8.main("cnn")
    verification = artifacts.read_json(artifacts.verification_int8("cnn"))
    evaluate.main("cnn")
    evaluation = artifacts.read_json(artifacts.evaluation("cnn"))
    assert verification["samples"] == 297
    assert verification["accuracy_low"] < verification["accuracy"] < verification["accuracy_high"]
    assert verification["accuracy_drop"] == pytest.approx(evaluation["accuracy"] - verification["accuracy"])
    assert 0 < verification["max_abs_difference"] < 1
    sizes = [artifacts.onnx(name).stat().st_size for name in ("cnn_int8", "cnn")]
    assert verification["size_ratio"] == sizes[0] / sizes[1]
    metrics = artifacts.read_json(artifacts.metrics_int8("cnn"))
    assert metrics == {"cnn_int8": {name: verification[name] for name in ("accuracy", "calibration_error")}}
    assert set(verification["perturbed_accuracy"]) == {"rotation", "scale", "shift", "thin_strokes", "thick_strokes"}


def test_an_accuracy_drop_above_the_maximum_is_a_user_error_after_it_is_written(models):
    change_one_weight("cnn_int8", "network.output.bias", 1000)
    with pytest.raises(UserError, match=r"^cnn: expected an accuracy drop of at most 0.05 .*, got .* in int8, .* in f"):
        verify_int8.main("cnn")
    verification = artifacts.read_json(artifacts.verification_int8("cnn"))
    assert verification["accuracy_drop"] > 0.05
    assert verification["changed_labels"] > 0


def test_an_accuracy_drop_up_to_the_maximum_passes(models, change):
    change_one_weight("cnn_int8", "network.output.bias", 1000)
    change({"int8.max_accuracy_drop": 1.0})
    verify_int8.main("cnn")
