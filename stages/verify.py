"""Verify that one model's ONNX file answers as the PyTorch network that it came from."""

import numpy as np
import torch
from torch import Tensor, nn

from stages import artifacts, command, dataset, histogram, networks, params, runtime
from stages.errors import UserError
from stages.networks import Classifier

BATCH_SIZES = (1, 7, 1000)
RANDOM_IMAGES = 1000


def main(model: str) -> None:
    """Compare MODEL in ONNX Runtime with PyTorch; fail if a label differs, or a probability beyond the tolerance."""
    parameters = params.load(model)
    test = dataset.load_test(parameters.data)
    network = networks.load(artifacts.weights(model), parameters.networks[model], len(parameters.data.classes))
    session = runtime.open_session(artifacts.onnx(model), len(parameters.data.classes))

    images = torch.cat([test.images, synthetic_images(parameters.seed)])
    labels, probabilities = pytorch_answers(network, images)
    disagree, differences = np.zeros(len(images), bool), np.zeros(len(images))
    for size in BATCH_SIZES:
        onnx_labels, onnx_probabilities = runtime.answers(session, images.numpy(), size)
        disagree |= onnx_labels != labels
        differences = np.maximum(differences, np.abs(onnx_probabilities - probabilities).max(axis=1))  # keeps a NaN
    disagreements, difference = int(disagree.sum()), differences.max()
    verification = {
        "samples": len(test),
        "synthetic_samples": len(images) - len(test),
        "label_disagreements": disagreements,
        "max_abs_difference": float(difference) if np.isfinite(difference) else None,
        "tolerance": parameters.tolerance,
        "onnx_accuracy": float((onnx_labels[: len(test)] == test.labels.numpy()).mean()),
    }
    artifacts.write_json(artifacts.verification(model), verification)
    figure = histogram.draw(differences, "ONNX Runtime to PyTorch", parameters.tolerance)
    artifacts.write_picture(artifacts.differences(model), figure)

    sizes = ", ".join(map(str, BATCH_SIZES))
    finding = f"{disagreements} labels of {len(images):,} images differ, probabilities by up to {difference:.1e}"
    if disagreements or not difference <= parameters.tolerance:
        pair = f"{artifacts.onnx(model)} does not answer as {artifacts.weights(model)}"
        raise UserError(f"{pair}: {finding}; allowed: 0 labels and {parameters.tolerance}")
    print(f"{model}: {finding}, in batches of {sizes}")


def synthetic_images(seed: int) -> Tensor:
    """Return an all-zero, an all-255 and RANDOM_IMAGES random images, uint8 [n, 1, 28, 28]."""
    noise = torch.randint(256, (RANDOM_IMAGES, *dataset.IMAGE_SHAPE), generator=torch.Generator().manual_seed(seed))
    plain = torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, *dataset.IMAGE_SHAPE)
    return torch.cat([plain, noise]).to(torch.uint8)


@torch.inference_mode()
def pytorch_answers(network: nn.Sequential, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    classifier = Classifier(network).eval()
    labels, probabilities = zip(*(classifier(batch) for batch in images.split(max(BATCH_SIZES))))
    return torch.cat(labels).numpy(), torch.cat(probabilities).numpy()


if __name__ == "__main__":
    command.run(main, "model")
