"""Compare each model's int8 variant with float32 in ONNX Runtime: file size, accuracy, and images per second.

The two alternate in groups of batches, so that a change of the machine's load affects both. A group is longer than one
batch, because ONNX Runtime's threads keep spinning for a moment after a batch and would slow down the other session.
"""

import statistics
import time

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from stages import artifacts, command, dataset, inference, params

BATCH_SIZE = 256
ROUNDS, BATCHES_PER_ROUND = 10, 20
THREADS = (1, 2)


def main() -> None:
    """Compare each model's int8 variant with float32: file size, accuracy, and images per second."""
    print(inference_table())


def inference_table() -> str:
    """Measure each model of params.yaml and return the Markdown table."""
    parameters = params.load_params()
    images = dataset.load_test_set(parameters.data).images[:BATCH_SIZE].numpy()
    columns = ["model", "int8 size, % of float32", "accuracy drop", "changed labels"]
    for threads in THREADS:
        columns += [f"{name} images/s, {threads} thread{'s' * (threads > 1)}" for name in ("float32", "int8")]
    lines = [f"| {' | '.join(columns)} |", "|" + len(columns) * "---|"]
    for model in parameters.models:
        files = artifacts.onnx(model), artifacts.onnx(artifacts.int8_name(model))
        int8 = artifacts.read_json(artifacts.verification_int8(model))
        cells = [model, f"{int8['size_ratio']:.0%}", f"{int8['accuracy_drop']:.2%}", f"{int8['changed_labels']}"]
        for threads in THREADS:
            sessions = [inference.open_session(file, len(parameters.data.classes), threads) for file in files]
            cells += [f"{len(images) / seconds:,.0f}" for seconds in median_seconds(sessions, images)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median_seconds(sessions: list[InferenceSession], images: NDArray[np.uint8]) -> list[float]:
    """Return each session's median seconds for one batch of images, uint8 [n, 1, 28, 28]."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, seconds in zip(sessions, times):
            for _ in range(BATCHES_PER_ROUND):
                start = time.perf_counter()
                session.run(None, {"image": images})
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    command.run(main)
