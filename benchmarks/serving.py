"""Measure the server beside bare ONNX Runtime, and beside KServe's SDK, MLServer and LitServe where they are installed.

Each runs the cnn in float32 on one thread, beside the thread that speaks HTTP. For every format, batch and number of
connections they take turns, so that all meet the same moments of the machine; figures are medians over the rounds. The
load runs on the same cores.
"""

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tqdm import tqdm

from stages import artifacts, dataset, params, runtime
from stages.errors import UserError

MODEL = "cnn"
BARE, OURS = "onnxruntime", "this server"
PEERS = ("kserve", "mlserver", "litserve")
ALSO_BINARY = {BARE, OURS, "kserve"}
FORMATS = ("json", "binary")
BATCHES = (1, 32, 256)
CONNECTIONS = (1, 8, 64)
PORT = 9700  # of the first server; each has two


@dataclass(frozen=True)
class Case:
    format: str
    batch: int  # images in a request
    connections: int


@dataclass(frozen=True)
class Turn:
    """What one server did in a turn."""

    server: str
    case: Case
    requests: float  # a second
    images: float  # a second
    p50: float  # milliseconds
    p99: float
    generator: float  # the share of a core that the load itself took


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there as well")
    parser.add_argument(
        "--python", nargs="+", metavar="FILE", default=[], help="other environments' interpreters that may have a peer"
    )
    options = parser.parse_args()
    try:
        results = measure(options.seconds, options.rounds, [sys.executable, *options.python])
    except UserError as error:
        sys.exit(f"serving: {error}")
    if options.json:
        artifacts.write_json(options.json, {"turns": [asdict(result) for result in results]})
    print(table(results))


def measure(seconds: float, rounds: int, interpreters: list[str]) -> list[Turn]:
    """Take all turns. Raises UserError if the model is missing or a server does not start."""
    parameters = params.load()
    images = dataset.load_test(parameters.data).images.numpy()
    session = runtime.open_session(artifacts.onnx(MODEL), len(parameters.data.classes), threads=1)
    cases = [Case(*case) for case in product(FORMATS, BATCHES, CONNECTIONS)]
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(running(command, port)) for name, command, port in commands(interpreters)}
        results = []
        for _ in range(rounds):
            for case in tqdm(cases, unit="case", disable=None):
                batch = images[: case.batch]
                results.append(bare(session, case, batch, seconds))
                for name, port in ports.items():
                    if case.format == "json" or name in ALSO_BINARY:
                        results.append(load(name, port, case, request(case.format, batch), seconds))
    return results


def commands(interpreters: list[str]) -> Iterator[tuple[str, list[str], int]]:
    """Yield each server's name, the command that starts it, and its port."""
    serve = ["-m", "serving", "--threads", "1", "--workers", "1", "--port", str(PORT)]
    yield OURS, [sys.executable, *serve], PORT
    for number, peer in enumerate(PEERS, 1):
        port = PORT + 2 * number
        for python in interpreters:
            if subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode == 0:
                yield peer, [python, f"benchmarks/peers/with_{peer}.py", str(port), str(artifacts.onnx(MODEL))], port
                break


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """Run a server, and give its port once it listens. Raises UserError if it does not in a minute."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise UserError(f"this server ended with status {process.returncode}: {' '.join(command)}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        else:
            raise UserError(f"nothing listens on port {port} after a minute: {' '.join(command)}")
        yield port
    finally:
        process.terminate()
        process.wait()


def request(kind: str, images: np.ndarray) -> bytes:
    """Return a whole HTTP request for images, uint8 [n, 1, 28, 28]."""
    image = {"name": "image", "shape": images.shape, "datatype": "UINT8"}
    headers = ["Content-Type: application/json"]
    if kind == "json":
        body = json.dumps({"inputs": [image | {"data": images.ravel().tolist()}]}).encode()
    else:
        image["parameters"] = {"binary_data_size": images.nbytes}
        head = json.dumps({"inputs": [image], "parameters": {"binary_data_output": True}}).encode()
        headers = ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(head)}"]
        body = head + images.tobytes()
    lines = [f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: benchmark", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def load(server: str, port: int, case: Case, content: bytes, seconds: float) -> Turn:
    """Put a server under load."""
    command = [sys.executable, "-m", "benchmarks.load", str(port), str(case.connections), str(seconds)]
    found = json.loads(subprocess.run(command, input=content, capture_output=True, check=True).stdout)
    return turn(server, case, found["seconds"], found["wall"], found["busy"])


def bare(session: InferenceSession, case: Case, images: np.ndarray, seconds: float) -> Turn:
    """Run the model in this process, batch after batch."""
    session.run(None, {"image": images})
    answers = []
    start = now = time.perf_counter()
    while now < start + seconds:
        session.run(None, {"image": images})
        answers.append(-now + (now := time.perf_counter()))
    return turn(BARE, case, answers, now - start, 0.0)


def turn(server: str, case: Case, answers: list[float], wall: float, generator: float) -> Turn:
    rate = len(answers) / wall
    p50, p99 = (1000 * percentile for percentile in np.percentile(answers, [50, 99]))
    return Turn(server, case, rate, rate * case.batch, p50, p99, generator)


def table(results: list[Turn]) -> str:
    """Lay out images a second, ours beside those of ONNX Runtime alone and of the best of the peers."""
    peers = [peer for peer in PEERS if any(it.server == peer for it in results)]
    columns = ["format", "batch", "connections", BARE, OURS, "p50, p99 ms", *peers, f"of {BARE}", "of the best peer"]
    lines = [f"| {' | '.join(columns)} |", "|" + len(columns) * "---|"]
    for case in dict.fromkeys(it.case for it in results):
        turns = {name: [it for it in results if (it.server, it.case) == (name, case)] for name in (BARE, OURS, *peers)}
        images = {name: statistics.median(it.images for it in each) for name, each in turns.items() if each}
        p50, p99 = (statistics.median(getattr(it, field) for it in turns[OURS]) for field in ("p50", "p99"))
        best = max((images[peer] for peer in peers if peer in images), default=None)
        columns = [case.format, f"{case.batch}", f"{case.connections}", f"{images[BARE]:,.0f}", f"{images[OURS]:,.0f}"]
        columns += [f"{p50:.2f}, {p99:.2f}", *(f"{images[peer]:,.0f}" if peer in images else "" for peer in peers)]
        columns += [f"{images[OURS] / images[BARE]:.0%}", f"{images[OURS] / best:.1f}x" if best else ""]
        lines.append(f"| {' | '.join(columns)} |")
    lines.append(f"\nThe load took at most {max(it.generator for it in results):.0%} of a core.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
