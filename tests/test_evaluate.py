import csv

import numpy as np
import pytest
import torch
from PIL import Image

from stages import artifacts, evaluate
from stages.errors import UserError


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logits_for(predicted: list[int], confidence: list[float]) -> torch.Tensor:
    """Logits of two classes that predict these classes with these confidences."""
    logits = torch.zeros(len(predicted), 2)
    for row, label, share in zip(logits, predicted, confidence):
        row[label] = np.log(share / (1 - share))
    return logits


def test_the_interval_is_wilsons():
    """Newcombe 1998, table I, method 3: 81 of 263 give 0.2553 to 0.3662."""
    labels = torch.tensor([1] * 81 + [0] * 182)
    metrics = evaluate.measure(logits_for([1] * 263, [0.9] * 263), labels)
    assert metrics["accuracy"] == pytest.approx(81 / 263)
    assert metrics["accuracy_low"] == pytest.approx(0.2553, abs=5e-5)
    assert metrics["accuracy_high"] == pytest.approx(0.3662, abs=5e-5)
    assert metrics["errors"] == 182
    assert metrics["samples"] == 263


def test_the_loss_is_the_mean_cross_entropy():
    metrics = evaluate.measure(logits_for([0, 0], [0.9, 0.6]), torch.tensor([0, 1]))
    assert metrics["loss"] == pytest.approx(-(np.log(0.9) + np.log(0.4)) / 2)


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.61, 1.0])
    correct = np.array([True, True, True, False, True, True])
    # the bin up to 1.0 holds five images, four of them right; the one of 0.61 holds a single one
    expected = 5 / 6 * abs(4 / 5 - (4 * 0.95 + 1.0) / 5) + 1 / 6 * abs(1 - 0.61)
    assert evaluate.calibration_error(confidence, correct) == pytest.approx(expected)


def test_a_model_that_knows_how_sure_it_is_has_no_calibration_error():
    assert evaluate.calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)


def test_the_files_agree_with_one_another(models):
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


def test_robustness_counts_the_errors_on_images_distorted_in_one_way_at_a_time(models):
    evaluate.main("cnn")
    evaluation = artifacts.read_json(artifacts.evaluation("cnn"))
    rows = {row["distortion"]: int(row["errors"]) for row in read_csv(artifacts.robustness("cnn"))}
    assert list(rows) == ["none", "rotation", "scale", "shift", "thin_strokes", "thick_strokes"]
    assert rows.pop("none") == evaluation["errors"]
    assert evaluation["robustness"] == {name: pytest.approx(1 - errors / 297) for name, errors in rows.items()}


def test_the_mistakes_are_a_picture_that_is_the_same_each_time(models):
    evaluate.main("fnn")
    first = artifacts.mistakes("fnn").read_bytes()
    with Image.open(artifacts.mistakes("fnn")) as picture:
        assert picture.format == "PNG"
        assert picture.info.keys() <= {"dpi"}
    evaluate.main("fnn")
    assert artifacts.mistakes("fnn").read_bytes() == first


def test_a_model_without_mistakes_has_a_picture_too(workspace):
    test = evaluate.dataset.Split(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]))
    evaluate.draw_mistakes(workspace / "mistakes.png", test, torch.eye(2), ["a", "b"])
    assert (workspace / "mistakes.png").is_file()


def test_below_the_minimum_accuracy_evaluation_fails_and_says_by_how_much(models, change):
    change({"minimum_accuracy.fnn": 1.0})
    with pytest.raises(UserError) as failure:
        evaluate.main("fnn")
    accuracy = artifacts.read_json(artifacts.evaluation("fnn"))["accuracy"]
    assert str(failure.value) == (
        f"fnn's accuracy, {accuracy:.4f}, is {1 - accuracy:.4f} below minimum_accuracy.fnn; allowed: 1.0 or more"
    )
