"""Verify that one model's int8 variant loses at most a limited accuracy against float32."""

import numpy as np

from stages import artifacts, command, dataset, histogram, inference, metrics, params
from stages.augmentation import perturbed_images
from stages.errors import UserError

BATCH_SIZE = 1000


def main(model: str) -> None:
    """Measure MODEL's int8 variant on the test set; fail if its accuracy drops by more than int8.max_accuracy_drop."""
    parameters = params.load_params(model)
    test = dataset.load_test_set(parameters.data)
    images, labels = test.images.numpy(), test.labels.numpy()
    files = artifacts.onnx(model), artifacts.onnx(artifacts.int8_name(model))
    float32, int8 = (inference.open_session(file, len(parameters.data.classes)) for file in files)
    float32_labels, float32_probabilities = inference.predict(float32, images, BATCH_SIZE)
    int8_labels, int8_probabilities = inference.predict(int8, images, BATCH_SIZE)

    before = metrics.accuracy_with_interval(float32_labels == labels)
    after = metrics.accuracy_with_interval(int8_labels == labels)
    accuracy_drop, limit = (after["errors"] - before["errors"]) / len(test), parameters.int8.max_accuracy_drop
    differences = np.abs(int8_probabilities - float32_probabilities).max(axis=1)
    comparison = {
        "calibration_error": metrics.calibration_error(int8_probabilities.max(axis=1), int8_labels == labels),
        "accuracy_drop": accuracy_drop,
        "changed_labels": int((int8_labels != float32_labels).sum()),
        "max_abs_difference": float(differences.max()) if np.isfinite(differences).all() else None,
        "size_ratio": files[1].stat().st_size / files[0].stat().st_size,
    }
    perturbed_accuracy = {
        name: float((inference.predict(int8, perturbed.numpy(), BATCH_SIZE)[0] == labels).mean())
        for name, perturbed in perturbed_images(test.images, parameters.perturbations).items()
    }
    artifacts.write_json(
        artifacts.verification_int8(model), {**after, **comparison, "perturbed_accuracy": perturbed_accuracy}
    )
    compared = {"accuracy": after["accuracy"], "calibration_error": comparison["calibration_error"]}
    artifacts.write_json(artifacts.metrics_int8(model), {artifacts.int8_name(model): compared})
    figure = histogram.draw_differences(differences, "int8 to float32")
    artifacts.write_figure(artifacts.differences_int8(model), figure)

    found = f"{after['accuracy']:.2%} in int8, {before['accuracy']:.2%} in float32"
    if accuracy_drop > limit:
        raise UserError(f"{model}: expected an accuracy drop of at most {limit} (int8.max_accuracy_drop), got {found}")
    print(f"{model}: {found}; {comparison['changed_labels']} of {len(test):,} labels differ")


if __name__ == "__main__":
    command.run(main, "model")
