"""Verify one model's ONNX file in ONNX Runtime against the PyTorch network."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages import artifacts, command, dataset, histogram, inference, networks, params
from stages.errors import UserError
from stages.images import IMAGE_SHAPE
from stages.networks import Classifier

BATCH_SIZES = (1, 7, 1000)
RANDOM_IMAGES = 1000


def main(model: str) -> None:
    """Compare MODEL in ONNX Runtime with PyTorch; fail if a label differs, or a probability beyond the tolerance."""
    parameters = params.load_params(model)
    test = dataset.load_test_set(parameters.data)
    network = networks.load_network(artifacts.weights(model), parameters.networks[model], len(parameters.data.classes))
    session = inference.open_session(artifacts.onnx(model), len(parameters.data.classes))

    images = torch.cat([test.images, synthetic_images(parameters.seed)])
    labels, probabilities = predict_with_pytorch(network, images)
    label_differs, max_differences = np.zeros(len(images), bool), np.zeros(len(images), np.float32)
    for size in BATCH_SIZES:
        onnx_labels, onnx_probabilities = inference.predict(session, images.numpy(), size)
        label_differs |= onnx_labels != labels
        # np.maximum propagates NaN
        max_differences = np.maximum(max_differences, np.abs(onnx_probabilities - probabilities).max(axis=1))
    disagreements, max_difference = int(label_differs.sum()), max_differences.max()
    verification = {
        "samples": len(test),
        "synthetic_samples": len(images) - len(test),
        "label_disagreements": disagreements,
        "max_abs_difference": float(max_difference) if np.isfinite(max_difference) else None,
        "tolerance": parameters.tolerance,
        "onnx_accuracy": float((onnx_labels[: len(test)] == test.labels.numpy()).mean()),
    }
    artifacts.write_json(artifacts.verification(model), verification)
    figure = histogram.draw_differences(max_differences, "ONNX Runtime to PyTorch", parameters.tolerance)
    artifacts.write_figure(artifacts.differences(model), figure)

    sizes = ", ".join(map(str, BATCH_SIZES))
    found = f"{disagreements} of {len(images):,} labels differ, probabilities by up to {max_difference:.1e}"
    if disagreements or not max_difference <= parameters.tolerance:
        expected = f"the labels of {artifacts.weights(model)}, and its probabilities within {parameters.tolerance}"
        raise UserError(f"{artifacts.onnx(model)}: expected {expected}, got: {found}")
    print(f"{model}: {found}, in batches of {sizes}")


def synthetic_images(seed: int) -> Tensor:
    """Return an all-zero, an all-255 and RANDOM_IMAGES random images, uint8 [n, 1, 28, 28]."""
    noise = torch.randint(256, (RANDOM_IMAGES, *IMAGE_SHAPE), generator=torch.Generator().manual_seed(seed))
    constant = torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, *IMAGE_SHAPE)
    return torch.cat([constant, noise]).to(torch.uint8)


@torch.inference_mode()
def predict_with_pytorch(network: nn.Sequential, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels, int64 [n], and probabilities, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
    classifier = Classifier(network).eval()
    labels, probabilities = zip(*(classifier(batch) for batch in images.split(max(BATCH_SIZES))))
    return torch.cat(labels).numpy(), torch.cat(probabilities).numpy()


if __name__ == "__main__":
    command.run(main, "model")
