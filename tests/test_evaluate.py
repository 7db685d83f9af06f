import csv

import numpy as np
import pytest
import torch
from PIL import Image

from stages import artifacts, dataset, evaluate, metrics
from stages.errors import UserError


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logits_for(predicted: list[int], confidence: list[float]) -> torch.Tensor:
    """Return logits of two classes that predict these classes with these confidences."""
    logits = torch.zeros(len(predicted), 2)
    for row, label, probability in zip(logits, predicted, confidence):
        row[label] = np.log(probability / (1 - probability))
    return logits


def test_the_confidence_interval_is_wilsons():
    """Newcombe 1998, table I, method 3: the interval of 81 of 263 is 0.2553 to 0.3662."""
    labels = torch.tensor([1] * 81 + [0] * 182)
    results = evaluate.classification_metrics(logits_for([1] * 263, [0.9] * 263), labels)
    assert results["accuracy"] == pytest.approx(81 / 263)
    assert results["accuracy_low"] == pytest.approx(0.2553, abs=5e-5)
    assert results["accuracy_high"] == pytest.approx(0.3662, abs=5e-5)
    assert results["errors"] == 182
    assert results["samples"] == 263


def test_the_loss_is_the_mean_cross_entropy():
    results = evaluate.classification_metrics(logits_for([0, 0], [0.9, 0.6]), torch.tensor([0, 1]))
    assert results["loss"] == pytest.approx(-(np.log(0.9) + np.log(0.4)) / 2)


def test_the_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.61, 1.0])
    correct = np.array([True, True, True, False, True, True])
    # The last bin holds five images, four of them correct, and the bin of 0.61 one.
    expected = 5 / 6 * abs(4 / 5 - (4 * 0.95 + 1.0) / 5) + 1 / 6 * abs(1 - 0.61)
    assert metrics.calibration_error(confidence, correct) == pytest.approx(expected)


def test_a_calibrated_model_has_no_calibration_error():
    assert metrics.calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)


def test_all_result_files_agree(models):
    evaluate.main("fnn")
    evaluation = artifacts.read_json(artifacts.evaluation("fnn"))
    confusion = read_csv(artifacts.confusion("fnn"))
    assert len(confusion) == evaluation["samples"] == 297
    assert sum(row["actual"] != row["predicted"] for row in confusion) == evaluation["errors"]
    assert evaluation["accuracy"] == pytest.approx(1 - evaluation["errors"] / 297)
    assert evaluation["parameters"] == 784 * 32 + 32 + 64 + 32 * 16 + 16 + 32 + 16 * 10 + 10

    for row in read_csv(artifacts.per_class("fnn")):
        predicted = [other for other in confusion if other["predicted"] == row["class"]]
        actual = [other for other in confusion if other["actual"] == row["class"]]
        both = sum(other["actual"] == other["predicted"] for other in actual)
        precision, recall = both / len(predicted), both / len(actual)
        assert float(row["precision"]) == pytest.approx(precision)
        assert float(row["recall"]) == pytest.approx(recall)
        assert float(row["f1"]) == pytest.approx(2 * precision * recall / (precision + recall))
        assert int(row["images"]) == len(actual)
        assert int(row["missed"]) == len(actual) - both


def test_the_robustness_files_count_the_errors_under_each_perturbation(models):
    evaluate.main("cnn")
    evaluation = artifacts.read_json(artifacts.evaluation("cnn"))
    rows = {row["perturbation"]: int(row["errors"]) for row in read_csv(artifacts.robustness("cnn"))}
    assert list(rows) == ["none", "rotation", "scale", "shift", "thin_strokes", "thick_strokes"]
    assert rows.pop("none") == evaluation["errors"]
    assert evaluation["perturbed_accuracy"] == {name: pytest.approx(1 - errors / 297) for name, errors in rows.items()}


def test_the_compared_metrics_are_few_and_those_of_the_evaluation(models):
    evaluate.main("cnn")
    evaluation, compared = (artifacts.read_json(file("cnn")) for file in (artifacts.evaluation, artifacts.metrics))
    robustness = evaluation["perturbed_accuracy"].values()
    expected = {name: evaluation[name] for name in ("accuracy", "loss", "calibration_error")}
    assert compared == {"cnn": expected | {"robustness": pytest.approx(sum(robustness) / len(robustness))}}


def test_without_perturbations_the_compared_metrics_have_no_robustness(models, change):
    change({"perturbations": {}})
    evaluate.main("fnn")
    assert artifacts.read_json(artifacts.metrics("fnn"))["fnn"].keys() == {"accuracy", "loss", "calibration_error"}


def test_the_figure_of_mistakes_has_the_same_bytes_in_each_run(models):
    evaluate.main("fnn")
    first = artifacts.mistakes("fnn").read_bytes()
    with Image.open(artifacts.mistakes("fnn")) as figure:
        assert figure.format == "PNG"
        assert figure.info.keys() <= {"dpi"}
    evaluate.main("fnn")
    assert artifacts.mistakes("fnn").read_bytes() == first


def test_a_model_without_mistakes_has_a_figure_too(workspace):
    test = dataset.Split(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]))
    evaluate.draw_mistakes(workspace / "mistakes.png", test, test.labels, torch.ones(2), ["a", "b"])
    assert (workspace / "mistakes.png").is_file()


def test_an_accuracy_below_the_minimum_is_a_user_error_after_all_results_are_written(models, change):
    change({"minimum_accuracy.fnn": 1.0})
    with pytest.raises(UserError) as raised:
        evaluate.main("fnn")
    accuracy = artifacts.read_json(artifacts.evaluation("fnn"))["accuracy"]
    expected = f"fnn: expected a test accuracy of at least 1.0 (minimum_accuracy), got {accuracy:.4f}"
    assert str(raised.value) == expected
    assert artifacts.mistakes("fnn").is_file()
