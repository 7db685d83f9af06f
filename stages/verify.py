"""Verify that one model's ONNX file answers as the PyTorch network that it came from."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from onnxruntime import InferenceSession
from torch import Tensor, nn

from stages import artifacts, command, dataset, networks, params
from stages.errors import UserError, one_line
from stages.networks import Classifier

BATCH_SIZES = (1, 7, 1000)
RANDOM_IMAGES = 1000


def main(model: str) -> None:
    """Compare MODEL in ONNX Runtime with PyTorch; fail if a label differs, or a probability beyond the tolerance."""
    parameters = params.load(model)
    test = dataset.load_test(parameters.data)
    network = networks.load(artifacts.weights(model), parameters.networks[model], len(parameters.data.classes))
    session = open_session(artifacts.onnx(model), len(parameters.data.classes))

    images = torch.cat([test.images, synthetic_images(parameters.seed)])
    labels, probabilities = pytorch_answers(network, images)
    disagreements, differences = 0, np.zeros(len(images))
    for size in BATCH_SIZES:
        onnx_labels, onnx_probabilities = onnx_answers(session, images, size)
        disagreements += int((onnx_labels != labels).sum())
        differences = np.maximum(differences, np.abs(onnx_probabilities - probabilities).max(axis=1))  # keeps a NaN
    difference = differences.max()
    verification = {
        "samples": len(test),
        "synthetic_samples": len(images) - len(test),
        "label_disagreements": disagreements,
        "max_abs_difference": float(difference) if np.isfinite(difference) else None,
        "tolerance": parameters.tolerance,
        "onnx_accuracy": float((onnx_labels[: len(test)] == test.labels.numpy()).mean()),
    }
    artifacts.write_json(artifacts.verification(model), verification)
    draw_differences(artifacts.differences(model), differences, parameters.tolerance)

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


def open_session(path: Path, classes: int) -> InferenceSession:
    """Load an ONNX file on the CPU; raise UserError if it is missing, cannot be loaded or has another signature."""
    artifacts.require(path)
    try:
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no class in common
        raise UserError(f"{path} cannot be loaded: {one_line(error)}") from error
    found = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    expected = [
        ("image", "tensor(uint8)", ["batch", *dataset.IMAGE_SHAPE]),
        ("label", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", classes]),
    ]
    if found != expected:
        raise UserError(f"{path} has the inputs and outputs {found}; allowed: {expected}")
    return session


@torch.inference_mode()
def pytorch_answers(network: nn.Sequential, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    classifier = Classifier(network).eval()
    labels, probabilities = zip(*(classifier(batch) for batch in images.split(max(BATCH_SIZES))))
    return torch.cat(labels).numpy(), torch.cat(probabilities).numpy()


def onnx_answers(session: InferenceSession, images: Tensor, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    batches = (batch.numpy() for batch in images.split(batch_size))
    labels, probabilities = zip(*(session.run(["label", "probabilities"], {"image": batch}) for batch in batches))
    return np.concatenate(labels), np.concatenate(probabilities)


def draw_differences(path: Path, differences: np.ndarray, tolerance: float) -> None:
    """Draw how many images differ by how much, float64 [n], in the probability that differs most."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.logspace(-9, 0, 91)  # equal to the last bit counts as the first, for a logarithmic scale has no 0
    axes.hist(np.clip(np.nan_to_num(differences, nan=1.0), bins[0], bins[-1]), bins=bins)
    axes.axvline(tolerance, color="black", linestyle="dashed", label=f"tolerance {tolerance}")
    axes.set(xscale="log", xlabel="largest difference of a probability, ONNX Runtime to PyTorch", ylabel="images")
    axes.legend()
    artifacts.write_picture(path, figure)


if __name__ == "__main__":
    command.run(main, "model")
