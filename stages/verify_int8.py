"""Verify that one model's int8 variant is as good as the float32 one, within a limit."""

import numpy as np

from stages import artifacts, command, dataset, histogram, metrics, params, runtime
from stages.distortion import distort_each_way
from stages.errors import UserError

BATCH_SIZE = 1000


def main(model: str) -> None:
    """Measure MODEL's int8 variant on the test set; fail if it loses more accuracy than int8.accuracy_loss."""
    parameters = params.load(model)
    test = dataset.load_test(parameters.data)
    images, labels = test.images.numpy(), test.labels.numpy()
    files = artifacts.onnx(model), artifacts.onnx(artifacts.int8(model))
    float32, int8 = (runtime.open_session(file, len(parameters.data.classes)) for file in files)
    float32_labels, float32_probabilities = runtime.answers(float32, images, BATCH_SIZE)
    int8_labels, int8_probabilities = runtime.answers(int8, images, BATCH_SIZE)

    before, after = metrics.accuracy(float32_labels == labels), metrics.accuracy(int8_labels == labels)
    differences = np.abs(int8_probabilities - float32_probabilities).max(axis=1)
    comparison = {
        "accuracy_loss": (after["errors"] - before["errors"]) / len(test),
        "changed_labels": int((int8_labels != float32_labels).sum()),
        "max_abs_difference": float(differences.max()) if np.isfinite(differences).all() else None,
        "size_ratio": files[1].stat().st_size / files[0].stat().st_size,
    }
    robustness = {
        way: float((runtime.answers(int8, distorted.numpy(), BATCH_SIZE)[0] == labels).mean())
        for way, distorted in distort_each_way(test.images, parameters.robustness).items()
    }
    artifacts.write_json(artifacts.verification_int8(model), after | comparison | {"robustness": robustness})
    artifacts.write_picture(artifacts.differences_int8(model), histogram.draw(differences, "int8 to float32"))

    finding = f"{model}: {after['accuracy']:.2%} right in int8, {before['accuracy']:.2%} in float32"
    if comparison["accuracy_loss"] > parameters.int8.accuracy_loss:
        excess = f"{comparison['accuracy_loss']:.4f} less; allowed: {parameters.int8.accuracy_loss}"
        raise UserError(f"{finding}, {excess}, as int8.accuracy_loss says")
    print(f"{finding}; {comparison['changed_labels']} of {len(test):,} labels differ")


if __name__ == "__main__":
    command.run(main, "model")
