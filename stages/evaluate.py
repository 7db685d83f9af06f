"""Evaluate one model on the test set: metrics, confusion matrix, robustness, reliability, and the worst mistakes."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import cross_entropy

from stages import artifacts, command, dataset, metrics, networks, params
from stages.augmentation import perturbed_images
from stages.errors import UserError

FIGURE_ROWS, FIGURE_COLUMNS = 5, 8


def main(model: str) -> None:
    """Evaluate MODEL on the test set, and remove its checkpoint; fail below its minimum accuracy."""
    parameters = params.load_params(model)
    classes = parameters.data.classes
    test = dataset.load_test_set(parameters.data)
    network = networks.load_network(artifacts.weights(model), parameters.networks[model], len(classes))
    logits = networks.predict_logits(network, test.images)

    probabilities = logits.softmax(dim=1)
    max_entropy = artifacts.read_json(artifacts.calibration(model))["max_entropy"]
    results = classification_metrics(logits, test.labels) | {
        "max_entropy": max_entropy,
        "labelled_fraction": float((entropy(probabilities, axis=1) <= max_entropy).mean()),
        "parameters": networks.parameter_count(network),
    }
    perturbed = {
        name: classification_metrics(networks.predict_logits(network, images), test.labels)
        for name, images in perturbed_images(test.images, parameters.perturbations).items()
    }
    perturbed_accuracy = {name: each["accuracy"] for name, each in perturbed.items()}
    artifacts.write_json(artifacts.evaluation(model), results | {"perturbed_accuracy": perturbed_accuracy})
    artifacts.write_json(artifacts.metrics(model), {model: compared_metrics(results, perturbed_accuracy)})
    errors = [(name, each["errors"]) for name, each in ({"none": results} | perturbed).items()]
    write_csv(artifacts.robustness(model), ["perturbation", "errors"], errors)
    confidence, predicted = probabilities.max(dim=1)
    write_per_class(artifacts.per_class(model), test.labels, predicted, classes)
    write_confusion(artifacts.confusion(model), test.labels, predicted, classes)
    draw_mistakes(artifacts.mistakes(model), test, predicted, confidence, classes)
    draw_reliability(artifacts.reliability(model), confidence.numpy(), (predicted == test.labels).numpy())

    # DVC starts this stage only after it has saved the weights of train, so the checkpoint is no longer needed.
    artifacts.remove(artifacts.checkpoint(model))

    accuracy, minimum = results["accuracy"], parameters.minimum_accuracy[model]
    interval = f"{results['accuracy_low']:.2%} to {results['accuracy_high']:.2%}"
    print(f"{model}: test accuracy {accuracy:.2%} (95 % interval {interval}), {len(test):,} images")
    print("  ".join(f"{name} {accuracy:.2%}" for name, accuracy in perturbed_accuracy.items()))
    if accuracy < minimum:
        raise UserError(
            f"{model}: expected a test accuracy of at least {minimum} (minimum_accuracy), got {accuracy:.4f}"
        )


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return accuracy, loss and calibration error of float32 logits [n, classes] for int64 labels [n]."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    correct = (predicted == labels).numpy()
    return {
        **metrics.accuracy_with_interval(correct),
        "loss": cross_entropy(logits, labels).item(),
        "calibration_error": metrics.calibration_error(confidence.numpy(), correct),
    }


def compared_metrics(results: dict[str, Any], perturbed_accuracy: dict[str, float]) -> dict[str, float]:
    """Return the few metrics that `dvc metrics diff` shows; robustness is the mean accuracy over the perturbations."""
    few = {name: results[name] for name in ("accuracy", "loss", "calibration_error")}
    return few | ({"robustness": float(np.mean([*perturbed_accuracy.values()]))} if perturbed_accuracy else {})


def write_per_class(path: Path, labels: Tensor, predicted: Tensor, classes: list[str]) -> None:
    """Write each class's precision, recall, F1, number of images, and number of misclassified images."""
    scores = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0.0)
    missed = labels[predicted != labels].bincount(minlength=len(classes))
    rows = zip(classes, *(score.tolist() for score in scores), missed.tolist())
    write_csv(path, ["class", "precision", "recall", "f1", "images", "missed"], rows)


def write_confusion(path: Path, labels: Tensor, predicted: Tensor, classes: list[str]) -> None:
    """Write the actual and the predicted class of each image, which DVC's template `confusion` counts."""
    rows = ((classes[actual], classes[guess]) for actual, guess in zip(labels, predicted))
    write_csv(path, ["actual", "predicted"], rows)


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file with LF line endings."""
    with artifacts.atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def draw_mistakes(path: Path, test: dataset.Split, predicted: Tensor, confidence: Tensor, classes: list[str]) -> None:
    """Draw the misclassified images of highest confidence, each titled with its true and its predicted class."""
    wrong = (predicted != test.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: FIGURE_ROWS * FIGURE_COLUMNS]
    figure = Figure(figsize=(1.5 * FIGURE_COLUMNS, 1.8 * FIGURE_ROWS), layout="constrained")
    figure.suptitle(f"The {len(worst)} worst of {len(wrong)} mistakes: true → predicted, confidence")
    grid = figure.subplots(FIGURE_ROWS, FIGURE_COLUMNS).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, worst):
        axes.imshow(test.images[index, 0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{classes[test.labels[index]]} → {classes[predicted[index]]}  {confidence[index]:.0%}")
    artifacts.write_figure(path, figure)


def draw_reliability(path: Path, confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> None:
    """Draw a reliability diagram: the accuracy in each bin of the confidence, and how many images the bin has."""
    bins = metrics.calibration_bins(confidence)
    images = np.bincount(bins, minlength=metrics.CALIBRATION_BINS)
    used = images > 0
    accuracy = np.bincount(bins, weights=correct, minlength=metrics.CALIBRATION_BINS)[used] / images[used]
    centers = ((np.arange(metrics.CALIBRATION_BINS) + 0.5) / metrics.CALIBRATION_BINS)[used]
    figure = Figure(figsize=(6, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    above.bar(centers, accuracy, width=1 / metrics.CALIBRATION_BINS, edgecolor="white")
    above.plot([0, 1], [0, 1], color="black", linestyle="dashed", label="perfectly calibrated")
    above.set(ylabel="accuracy", title=f"Calibration error: {metrics.calibration_error(confidence, correct):.2%}")
    above.legend()
    below.bar(centers, images[used], width=1 / metrics.CALIBRATION_BINS, edgecolor="white")
    below.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1))
    artifacts.write_figure(path, figure)


if __name__ == "__main__":
    command.run(main, "model")
