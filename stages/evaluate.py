"""Evaluate one model on the test set: metrics, confusion matrix, and its worst mistakes as a picture."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import cross_entropy

from stages import artifacts, command, dataset, metrics, networks, params
from stages.distortion import distort_each_way
from stages.errors import UserError

CALIBRATION_BINS = 15
PICTURE_ROWS, PICTURE_COLUMNS = 5, 8


def main(model: str) -> None:
    """Evaluate MODEL on the test set; fail below its minimum accuracy."""
    parameters = params.load(model)
    classes = parameters.data.classes
    test = dataset.load_test(parameters.data)
    network = networks.load(artifacts.weights(model), parameters.networks[model], len(classes))
    logits = networks.predict(network, test.images)

    measured = measure(logits, test.labels) | {"parameters": networks.parameter_count(network)}
    distorted = {
        way: measure(networks.predict(network, images), test.labels)
        for way, images in distort_each_way(test.images, parameters.robustness).items()
    }
    measured["robustness"] = {way: result["accuracy"] for way, result in distorted.items()}
    artifacts.write_json(artifacts.evaluation(model), measured)
    errors = [(way, result["errors"]) for way, result in ({"none": measured} | distorted).items()]
    write_csv(artifacts.robustness(model), ["distortion", "errors"], errors)
    predicted = logits.argmax(dim=1)
    write_per_class(artifacts.per_class(model), test.labels, predicted, classes)
    write_confusion(artifacts.confusion(model), test.labels, predicted, classes)
    draw_mistakes(artifacts.mistakes(model), test, logits.softmax(dim=1), classes)

    accuracy, minimum = measured["accuracy"], parameters.minimum_accuracy[model]
    interval = f"{measured['accuracy_low']:.2%} to {measured['accuracy_high']:.2%}"
    print(f"{model}: {accuracy:.2%} of {len(test):,} test images right ({interval})")
    print("  ".join(f"{way} {share:.2%}" for way, share in measured["robustness"].items()))
    if accuracy < minimum:
        shortfall = f"{accuracy:.4f}, is {minimum - accuracy:.4f} below minimum_accuracy.{model}"
        raise UserError(f"{model}'s accuracy, {shortfall}; allowed: {minimum} or more")


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the metrics of float32 logits [n, classes] for int64 labels [n]."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    correct = (predicted == labels).numpy()
    return metrics.accuracy(correct) | {
        "loss": cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(confidence.numpy(), correct),
    }


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599, equation 3).

    A bin's share of the images times the gap between its accuracy and its mean confidence is the absolute sum of its
    images' (correct - confidence), divided by the number of all images.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence.astype(np.float64))
    return float(np.abs(gaps).sum() / len(correct))


def write_per_class(path: Path, labels: Tensor, predicted: Tensor, classes: list[str]) -> None:
    """Write each class's precision, recall, F1, number of images, and how many of them went to another class."""
    scores = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0.0)
    missed = labels[predicted != labels].bincount(minlength=len(classes))
    rows = zip(classes, *(score.tolist() for score in scores), missed.tolist())
    write_csv(path, ["class", "precision", "recall", "f1", "images", "missed"], rows)


def write_confusion(path: Path, labels: Tensor, predicted: Tensor, classes: list[str]) -> None:
    """Write a line for each image; DVC's confusion plot counts them."""
    write_csv(path, ["actual", "predicted"], ((classes[a], classes[p]) for a, p in zip(labels, predicted)))


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable]) -> None:
    with artifacts.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def draw_mistakes(path: Path, test: dataset.Split, probabilities: Tensor, classes: list[str]) -> None:
    """Draw the mistakes made with the most confidence, each titled with the true and the predicted class."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != test.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: PICTURE_ROWS * PICTURE_COLUMNS]
    figure = Figure(figsize=(1.5 * PICTURE_COLUMNS, 1.8 * PICTURE_ROWS), layout="constrained")
    figure.suptitle(f"The {len(worst)} worst of {len(wrong)} mistakes: true → predicted, confidence")
    grid = figure.subplots(PICTURE_ROWS, PICTURE_COLUMNS).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, worst):
        axes.imshow(test.images[index, 0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{classes[test.labels[index]]} → {classes[predicted[index]]}  {confidence[index]:.0%}")
    artifacts.write_picture(path, figure)


if __name__ == "__main__":
    command.run(main, "model")
