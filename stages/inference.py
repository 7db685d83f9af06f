"""Inference with ONNX Runtime."""

from pathlib import Path

import joblib
import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions

from stages import artifacts
from stages.errors import UserError, one_line
from stages.images import IMAGE_SHAPE


def open_session(path: Path, class_count: int, threads: int = 0) -> InferenceSession:
    """Load an ONNX file on the CPU with `threads` intra-op threads; 0: one for each core that this process may use.

    Raises UserError if the file is missing, cannot be loaded or has another signature.
    """
    artifacts.require_file(path)
    options = SessionOptions()
    options.intra_op_num_threads = threads or joblib.cpu_count()
    try:
        session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UserError(f"{path}: expected a model for ONNX Runtime, got {one_line(error)}") from error
    found = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    expected = [
        ("image", "tensor(uint8)", ["batch", *IMAGE_SHAPE]),
        ("label", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", class_count]),
    ]
    if found != expected:
        raise UserError(f"{path}: expected the inputs and outputs {expected}, got {found}")
    return session


def predict(
    session: InferenceSession, images: NDArray[np.uint8], batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels, int64 [n], and probabilities, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    outputs = [session.run(["label", "probabilities"], {"image": batch}) for batch in batches]
    labels, probabilities = zip(*outputs)
    return np.concatenate(labels), np.concatenate(probabilities)
