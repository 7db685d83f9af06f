"""ONNX Runtime: open an exported model, and ask it."""

from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

from stages import artifacts
from stages.dataset import IMAGE_SHAPE
from stages.errors import UserError, one_line


def open_session(path: Path, classes: int, threads: int = 0) -> InferenceSession:
    """Load an ONNX file on the CPU, to run on so many threads; 0: one for each core.

    Raises UserError if it is missing, cannot be loaded or has another signature.
    """
    artifacts.require(path)
    options = SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no class in common
        raise UserError(f"{path} cannot be loaded: {one_line(error)}") from error
    found = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    expected = [
        ("image", "tensor(uint8)", ["batch", *IMAGE_SHAPE]),
        ("label", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", classes]),
    ]
    if found != expected:
        raise UserError(f"{path} has the inputs and outputs {found}; allowed: {expected}")
    return session


def answers(session: InferenceSession, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, int64 [n], and probabilities, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    labels, probabilities = zip(*(session.run(["label", "probabilities"], {"image": batch}) for batch in batches))
    return np.concatenate(labels), np.concatenate(probabilities)
