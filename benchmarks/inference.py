"""Compare each model's int8 variant with the float32 one in ONNX Runtime: size, accuracy, and images a second.

The two take turns of some batches each, so that both meet the same moments of the machine; after a single batch, the
threads of the one that ran last would still be spinning.
"""

import statistics
import time

import numpy as np
from onnxruntime import InferenceSession

from stages import artifacts, command, dataset, params, runtime

BATCH_SIZE = 256
ROUNDS, BATCHES = 10, 20  # turns, and batches in each
THREADS = (1, 2)


def main() -> None:
    """Compare each model's int8 variant with the float32 one: size, accuracy, and images a second."""
    print(table())


def table() -> str:
    """Lay out a line for each model of params.yaml."""
    parameters = params.load()
    images = dataset.load_test(parameters.data).images[:BATCH_SIZE].numpy()
    speeds = "".join(f" images/s, {count} thread{'s' if count > 1 else ''}: float32 | int8 |" for count in THREADS)
    header = f"| model | size of int8 | accuracy lost | labels changed |{speeds}"
    lines = [header, "|" + (header.count("|") - 1) * "---|"]
    for model in parameters.models:
        files = artifacts.onnx(model), artifacts.onnx(artifacts.int8(model))
        found = artifacts.read_json(artifacts.verification_int8(model))
        columns = [model, f"{found['size_ratio']:.0%}", f"{found['accuracy_loss']:.2%}", f"{found['changed_labels']}"]
        for threads in THREADS:
            sessions = [runtime.open_session(file, len(parameters.data.classes), threads) for file in files]
            columns += [f"{len(images) / seconds:,.0f}" for seconds in measure(sessions, images)]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def measure(sessions: list[InferenceSession], images: np.ndarray) -> list[float]:
    """Return each session's median seconds for the images, uint8 [n, 1, 28, 28]."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, seconds in zip(sessions, times):
            for _ in range(BATCHES):
                start = time.perf_counter()
                session.run(None, {"image": images})
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    command.run(main)
