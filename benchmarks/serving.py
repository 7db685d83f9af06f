"""Compare the server with ONNX Runtime without a server, and with Triton, KServe's SDK, MLServer and LitServe.

Each server that is installed runs one model with one instance and one intra-op thread; the table shows a server with
several settings of its dynamic batching at its best one for each case. For every format, batch size and number of
connections, the measurements alternate between the servers, so that a change of the machine's load affects all of them;
the table shows medians over the rounds. The other servers are stopped meanwhile, because some use CPU time when idle.
The load generator runs on the same machine.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from tqdm import tqdm
from tritonclient.grpc import service_pb2

from benchmarks import triton
from stages import artifacts, dataset, inference, params
from stages.errors import UserError

BASELINE, OURS, TRITON = "onnxruntime", "this server", "triton"
PYTHON_PEERS = ("kserve", "mlserver", "litserve")  # the names of their Python packages
PEERS = (TRITON, *PYTHON_PEERS)
BATCHING = {  # settings of dynamic batching: off, or the maximum number of requests in a batch and the maximum delay
    "mlserver": ("", "8 0.001", "64 0.001"),
    "litserve": ("", "8 0.01", "64 0.005", "64 0.01"),  # without a delay, its worker would poll without a pause
}
FORMATS = ("json", "binary", "grpc")
FORMATS_OF_PEERS = {"mlserver": ("json", "grpc"), "litserve": ("json",)}  # the others have all
BATCH_SIZES = (1, 32, 256)
CONNECTIONS = (1, 8, 64)
FIRST_PORT = 9700  # each server has two ports: HTTP, and the next one for gRPC
START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Case:
    """The kind of load."""

    format: str
    batch_size: int  # images in a request
    connections: int


@dataclass(frozen=True)
class Server:
    """A server, with one setting of its dynamic batching."""

    name: str
    batching: str
    command: list[str]
    port: int


@dataclass(frozen=True)
class Measurement:
    """The throughput and the latency of one server under one kind of load."""

    server: str
    batching: str
    case: Case
    requests_per_second: float
    images_per_second: float
    p50_ms: float
    p99_ms: float
    generator_cpu_share: float  # of one core


def main() -> None:
    options = parse_options()
    interpreters = [sys.executable, *options.python]
    try:
        measurements = measure_servers(options.model, options.seconds, options.rounds, interpreters)
    except UserError as error:
        sys.exit(f"serving: {error}")
    if options.json:
        artifacts.write_json(options.json, {"measurements": [asdict(each) for each in measurements]})
    print(serving_table(measurements))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="cnn", help="model in the model repository (default: cnn)")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server and case (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to a JSON file")
    parser.add_argument(
        "--python", nargs="+", metavar="FILE", default=[], help="Python interpreters of environments with other servers"
    )
    return parser.parse_args()


def measure_servers(model: str, seconds: float, rounds: int, interpreters: list[str]) -> list[Measurement]:
    """Start all servers and measure every case. Raises UserError if the model is missing or a server fails to start."""
    parameters = params.load_params()
    images = dataset.load_test_set(parameters.data).images.numpy()
    session = inference.open_session(artifacts.onnx(model), len(parameters.data.classes), threads=1)
    cases = [Case(*case) for case in itertools.product(FORMATS, BATCH_SIZES, CONNECTIONS)]
    measurements = []
    with contextlib.ExitStack() as stack:
        servers = [
            (server, stack.enter_context(stopped_server(server))) for server in find_servers(model, interpreters)
        ]
        for number in range(1, rounds + 1):
            for case in tqdm(cases, unit="case", disable=None):
                tqdm.write(f"round {number} of {rounds}: {case}", file=sys.stderr)
                batch = images[: case.batch_size]
                request = inference_request(model, case.format, batch)
                measurements.append(measure_baseline(session, case, batch, seconds))
                for server, process in servers:
                    if case.format in FORMATS_OF_PEERS.get(server.name, FORMATS):
                        with resumed(process):
                            measurements.append(measure_server(server, case, request, seconds))
    return measurements


def find_servers(model: str, interpreters: list[str]) -> list[Server]:
    """Return this server, Triton if it is installed, and each peer that an interpreter can import."""
    file = str(artifacts.onnx(model))
    commands = {OURS: [sys.executable, "-m", "serving", "--workers", "1", "--port"]}
    if triton.INSTALLED.exists():
        commands[TRITON] = [sys.executable, "-m", "benchmarks.triton", file]
    for peer in PYTHON_PEERS:
        for python in interpreters:
            if subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode == 0:
                commands[peer] = [python, f"benchmarks/peers/with_{peer}.py", file]
                break
    settings = [(name, batching) for name in commands for batching in BATCHING.get(name, ("",))]
    return [
        Server(name, batching, [*commands[name], str(port), *batching.split()], port)
        for (name, batching), port in zip(settings, itertools.count(FIRST_PORT, 2))
    ]


@contextlib.contextmanager
def stopped_server(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, and stop its processes once it accepts connections; terminate them at the end.

    Raises UserError if it does not accept connections within the time limit.
    """
    process = subprocess.Popen(
        server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not accepts_connections(server.port):
            expected = f"{' '.join(server.command)}: expected a server on port {server.port}"
            if process.poll() is not None:
                raise UserError(f"{expected}, got exit status {process.returncode}")
            if time.monotonic() > deadline:
                raise UserError(f"{expected}, got no connection within {START_TIMEOUT_SECONDS} s")
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGCONT)
            process.wait(STOP_TIMEOUT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe's processes outlive its main process
        process.wait()


@contextlib.contextmanager
def resumed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Resume the processes of a server, and stop them again."""
    os.killpg(process.pid, signal.SIGCONT)
    yield
    os.killpg(process.pid, signal.SIGSTOP)


def accepts_connections(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def inference_request(model: str, format: str, images: NDArray[np.uint8]) -> bytes:
    """Return an inference request for images, uint8 [n, 1, 28, 28]: a whole HTTP request, or the message for gRPC."""
    if format == "grpc":
        message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
        message.inputs.add(name="image", datatype="UINT8", shape=images.shape)
        return cast(bytes, message.SerializeToString())
    tensor: dict[str, Any] = {"name": "image", "shape": images.shape, "datatype": "UINT8"}
    headers = ["Content-Type: application/json"]
    if format == "json":
        body = json.dumps({"inputs": [tensor | {"data": images.ravel().tolist()}]}).encode()
    else:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(header)}"]
        body = header + images.tobytes()
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def measure_server(server: Server, case: Case, request: bytes, seconds: float) -> Measurement:
    """Measure a server under the load of the load generator. Raises UserError if the load generator fails."""
    protocol, port = ("grpc", server.port + 1) if case.format == "grpc" else ("http", server.port)
    arguments = [protocol, str(port), str(case.connections), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.load_generator", *arguments]
    ended = subprocess.run(command, input=request, capture_output=True)
    if ended.returncode:
        last_line = ended.stderr.decode().strip().rpartition("\n")[2]
        raise UserError(f"{server.name}, {case}: expected responses with status 200, got {last_line}")
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
    baseline = Server(BASELINE, batching="", command=[], port=0)
    return measurement(baseline, case, latencies, now - start, generator_cpu_share=0.0)


def measurement(
    server: Server, case: Case, latencies: list[float], elapsed: float, generator_cpu_share: float
) -> Measurement:
    """Compute rates and percentiles from latencies in seconds."""
    rate = len(latencies) / elapsed
    p50, p99 = (float(1000 * percentile) for percentile in np.percentile(latencies, [50, 99]))
    images_rate = rate * case.batch_size
    return Measurement(server.name, server.batching, case, rate, images_rate, p50, p99, generator_cpu_share)


def serving_table(measurements: list[Measurement]) -> str:
    """Return a Markdown table of the images per second of each server, and the latency of this server."""
    servers = [name for name in (BASELINE, OURS, *PEERS) if any(each.server == name for each in measurements)]
    columns = ["format", "batch size", "connections", *servers, "this server's p50 / p99, ms"]
    columns += ["% of onnxruntime", "speed-up over the best Python server", "over triton"]
    lines = ["Images per second, median", "", f"| {' | '.join(columns)} |", "|" + len(columns) * "---|"]
    for case in dict.fromkeys(each.case for each in measurements):
        groups = {name: [each for each in measurements if (each.server, each.case) == (name, case)] for name in servers}
        images = {name: best_throughput(group) for name, group in groups.items()}
        p50 = statistics.median(each.p50_ms for each in groups[OURS])
        p99 = statistics.median(each.p99_ms for each in groups[OURS])
        python_peer = max(images.get(peer, 0) for peer in PYTHON_PEERS)
        cells = [case.format, f"{case.batch_size}", f"{case.connections}"]
        cells += [f"{images[name]:,.0f}" if images[name] else "" for name in servers]
        cells += [f"{p50:.2f} / {p99:.2f}", f"{images[OURS] / images[BASELINE]:.0%}"]
        cells += [f"{images[OURS] / peer:.1f}" if peer else "" for peer in (python_peer, images.get(TRITON))]
        lines.append(f"| {' | '.join(cells)} |")
    shares = {
        format: max(each.generator_cpu_share for each in measurements if each.case.format == format)
        for format in dict.fromkeys(each.case.format for each in measurements)
    }
    shares_text = ", ".join(f"{share:.0%} ({format})" for format, share in shares.items())
    return "\n".join([*lines, "", f"The load generator used at most these shares of a core: {shares_text}."])


def best_throughput(measurements: list[Measurement]) -> float:
    """Return the median of the images per second with the best setting of dynamic batching; 0 without measurements."""
    settings = {each.batching for each in measurements}
    return max(
        (
            statistics.median(each.images_per_second for each in measurements if each.batching == batching)
            for batching in settings
        ),
        default=0.0,
    )


if __name__ == "__main__":
    main()
