"""Compare the server with ONNX Runtime without a server, and with KServe's SDK, MLServer and LitServe if installed.

Each server runs the cnn in float32 with one intra-op thread. For every format, batch size and number of connections the
measurements alternate between the servers, so that a change of the machine's load affects all of them; the table shows
medians over the rounds. The load generator runs on the same machine.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from tqdm import tqdm

from stages import artifacts, dataset, inference, params
from stages.errors import UserError

MODEL = "cnn"
BASELINE, OURS = "onnxruntime", "this server"
PEERS = ("kserve", "mlserver", "litserve")  # the names of their Python packages
WITH_BINARY_FORMAT = {BASELINE, OURS, "kserve"}
FORMATS = ("json", "binary")
BATCH_SIZES = (1, 32, 256)
CONNECTIONS = (1, 8, 64)
FIRST_PORT = 9700  # each server has two ports
START_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Case:
    """The kind of load."""

    format: str
    batch_size: int  # images in a request
    connections: int


@dataclass(frozen=True)
class Measurement:
    """The throughput and the latency of one server under one kind of load."""

    server: str
    case: Case
    requests_per_second: float
    images_per_second: float
    p50_ms: float
    p99_ms: float
    generator_cpu_share: float  # of one core


def main() -> None:
    options = parse_options()
    try:
        measurements = measure_servers(options.seconds, options.rounds, [sys.executable, *options.python])
    except UserError as error:
        sys.exit(f"serving: {error}")
    if options.json:
        artifacts.write_json(options.json, {"measurements": [asdict(each) for each in measurements]})
    print(serving_table(measurements))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server and case (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to a JSON file")
    parser.add_argument(
        "--python", nargs="+", metavar="FILE", default=[], help="Python interpreters of environments with other servers"
    )
    return parser.parse_args()


def measure_servers(seconds: float, rounds: int, interpreters: list[str]) -> list[Measurement]:
    """Start all servers and measure every case. Raises UserError if the model is missing or a server fails to start."""
    parameters = params.load_params()
    images = dataset.load_test_set(parameters.data).images.numpy()
    session = inference.open_session(artifacts.onnx(MODEL), len(parameters.data.classes), threads=1)
    cases = [Case(*case) for case in product(FORMATS, BATCH_SIZES, CONNECTIONS)]
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, command, port in server_commands(interpreters):
            stack.enter_context(running_server(command, port))
            ports[name] = port
        measurements = []
        for _ in range(rounds):
            for case in tqdm(cases, unit="case", disable=None):
                batch = images[: case.batch_size]
                measurements.append(measure_baseline(session, case, batch, seconds))
                for name, port in ports.items():
                    if case.format == "json" or name in WITH_BINARY_FORMAT:
                        request = http_request(case.format, batch)
                        measurements.append(measure_server(name, port, case, request, seconds))
    return measurements


def server_commands(interpreters: list[str]) -> Iterator[tuple[str, list[str], int]]:
    """Yield the name, the command and the port of this server and of each peer that an interpreter can import."""
    arguments = ["--workers", "1", "--port", str(FIRST_PORT)]
    yield OURS, [sys.executable, "-m", "serving", *arguments], FIRST_PORT
    for number, peer in enumerate(PEERS, start=1):
        port = FIRST_PORT + 2 * number
        for python in interpreters:
            if subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode == 0:
                yield peer, [python, f"benchmarks/peers/with_{peer}.py", str(port), str(artifacts.onnx(MODEL))], port
                break


@contextlib.contextmanager
def running_server(command: list[str], port: int) -> Iterator[None]:
    """Run a server, from the moment it accepts connections. Raises UserError if it does not within the time limit."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not accepts_connections(port):
            expected = f"{' '.join(command)}: expected a server on port {port}"
            if process.poll() is not None:
                raise UserError(f"{expected}, got exit status {process.returncode}")
            if time.monotonic() > deadline:
                raise UserError(f"{expected}, got no connection within {START_TIMEOUT_SECONDS} s")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def accepts_connections(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def http_request(format: str, images: NDArray[np.uint8]) -> bytes:
    """Return a whole inference request, in JSON or binary format, for images, uint8 [n, 1, 28, 28]."""
    tensor: dict[str, Any] = {"name": "image", "shape": images.shape, "datatype": "UINT8"}
    headers = ["Content-Type: application/json"]
    if format == "json":
        body = json.dumps({"inputs": [tensor | {"data": images.ravel().tolist()}]}).encode()
    else:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(header)}"]
        body = header + images.tobytes()
    lines = [f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def measure_server(server: str, port: int, case: Case, request: bytes, seconds: float) -> Measurement:
    """Measure a server under the load of the load generator. Raises UserError if the load generator fails."""
    command = [sys.executable, "-m", "benchmarks.load_generator", str(port), str(case.connections), str(seconds)]
    ended = subprocess.run(command, input=request, capture_output=True)
    if ended.returncode:
        last_line = ended.stderr.decode().strip().rpartition("\n")[2]
        raise UserError(f"{server}, {case}: expected responses with status 200, got {last_line}")
    result = json.loads(ended.stdout)
    return measurement(server, case, result["latencies"], result["elapsed"], result["cpu_share"])


def measure_baseline(session: InferenceSession, case: Case, images: NDArray[np.uint8], seconds: float) -> Measurement:
    """Measure the model in this process, batch after batch, without a server."""
    session.run(None, {"image": images})  # warm-up
    latencies = []
    start = now = time.perf_counter()
    while now < start + seconds:
        session.run(None, {"image": images})
        latencies.append(-now + (now := time.perf_counter()))
    return measurement(BASELINE, case, latencies, now - start, generator_cpu_share=0.0)


def measurement(
    server: str, case: Case, latencies: list[float], elapsed: float, generator_cpu_share: float
) -> Measurement:
    """Compute rates and percentiles from latencies in seconds."""
    rate = len(latencies) / elapsed
    p50, p99 = (float(1000 * percentile) for percentile in np.percentile(latencies, [50, 99]))
    return Measurement(server, case, rate, rate * case.batch_size, p50, p99, generator_cpu_share)


def serving_table(measurements: list[Measurement]) -> str:
    """Return a Markdown table of the images per second of each server, and the latency of this server."""
    peers = [peer for peer in PEERS if any(each.server == peer for each in measurements)]
    columns = ["format", "batch size", "connections", f"{BASELINE} (baseline)", OURS, *peers]
    columns += ["this server's p50 / p99, ms", "% of baseline", "speed-up over the best peer"]
    lines = ["Images per second, median", "", f"| {' | '.join(columns)} |", "|" + len(columns) * "---|"]
    for case in dict.fromkeys(each.case for each in measurements):
        groups = {
            server: [each for each in measurements if (each.server, each.case) == (server, case)]
            for server in (BASELINE, OURS, *peers)
        }
        images = {
            server: statistics.median(each.images_per_second for each in group)
            for server, group in groups.items()
            if group
        }
        p50 = statistics.median(each.p50_ms for each in groups[OURS])
        p99 = statistics.median(each.p99_ms for each in groups[OURS])
        best_peer = max((images[peer] for peer in peers if peer in images), default=None)
        cells = [case.format, f"{case.batch_size}", f"{case.connections}"]
        cells += [f"{images[server]:,.0f}" if server in images else "" for server in (BASELINE, OURS, *peers)]
        cells += [f"{p50:.2f} / {p99:.2f}", f"{images[OURS] / images[BASELINE]:.0%}"]
        cells += [f"{images[OURS] / best_peer:.1f}" if best_peer else ""]
        lines.append(f"| {' | '.join(cells)} |")
    share = max(each.generator_cpu_share for each in measurements)
    lines += ["", f"The load generator used at most {share:.0%} of a core."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
