"""The inference server as a process: protocol (with Triton's client), limits, start and graceful shutdown."""

import contextlib
import http.client
import io
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from hashlib import md5
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from serving import __version__
from stages import artifacts
from tests.conftest import PROJECT, not_serving, serving

MODELS = ("cnn", "cnn_int8", "fnn", "fnn_int8")


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)


def run_onnx(folder, model: str, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities from ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(folder / artifacts.onnx(model))
    return session.run(["label", "probabilities"], {"image": batch})


def inference_request(batch: np.ndarray, **fields) -> dict:
    image = {"name": "image", "shape": batch.shape, "datatype": "UINT8", "data": batch.ravel().tolist()}
    return {"inputs": [image], **fields}


def infer(server, content: dict, model: str = "cnn", **headers: str) -> tuple[int, dict]:
    return server.json(f"/v2/models/{model}/infer", json.dumps(content).encode(), **headers)


def binary_request(content: dict, binary: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary data after its JSON, and the header with the JSON's length."""
    head = json.dumps(content).encode()
    return head + binary, {"Inference-Header-Content-Length": str(len(head))}


@pytest.fixture
def client(server):
    with tritonclient.http.InferenceServerClient(server.address) as client:
        yield client


def triton_infer(client, model: str, batch: np.ndarray, binary: bool, outputs: tuple[str, ...] = (), **options):
    """Send an inference request with Triton's client."""
    image = tritonclient.http.InferInput("image", batch.shape, "UINT8")
    image.set_data_from_numpy(batch, binary_data=binary)
    requested = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in outputs]
    return client.infer(model, [image], outputs=requested or None, **options)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("version", ["", "1"])
def test_triton_client_reads_model_metadata(client, model, version):
    assert client.is_model_ready(model, version)
    assert client.get_model_metadata(model, version) == {
        "name": model,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }


def test_triton_client_reads_server_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("mnist-pipeline", __version__)
    assert metadata["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_triton_client_gets_the_outputs_of_onnx_runtime(client, models_folder, model, binary, size):
    batch = random_images(size)
    label, probabilities = run_onnx(models_folder, model, batch)
    result = triton_infer(client, model, batch, binary, ("probabilities", "label"), model_version="1", request_id="42")
    assert result.get_response()["id"] == "42"
    np.testing.assert_array_equal(result.as_numpy("label"), label)
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)


def test_all_outputs_are_returned_by_default(client):
    result = triton_infer(client, "fnn", random_images(3), binary=True)
    assert result.as_numpy("label").shape == (3,)
    assert result.as_numpy("probabilities").shape == (3, 10)


def test_only_requested_outputs_are_returned(client):
    result = triton_infer(client, "fnn", random_images(3), True, ("label",))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label"]


def test_concurrent_requests_get_their_own_outputs(server, models_folder):
    batches = [random_images(1 + seed % 40, seed) for seed in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda batch: infer(server, inference_request(batch)), batches))
    for batch, (status, answer) in zip(batches, answers):
        _, probabilities = answer["outputs"]
        assert (status, probabilities["shape"]) == (200, [len(batch), 10])
        expected_probabilities = run_onnx(models_folder, "cnn", batch)[1]
        np.testing.assert_allclose(probabilities["data"], expected_probabilities.ravel(), atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_accuracy_over_http_equals_the_accuracy_of_the_verify_stages(shipped_server, test_set, model):
    pixels, labels = test_set
    float32 = model.removesuffix("_int8")
    if model == float32:
        expected = artifacts.read_json(PROJECT / artifacts.verification(model))["onnx_accuracy"]
    else:
        expected = artifacts.read_json(PROJECT / artifacts.verification_int8(float32))["accuracy"]
    with tritonclient.http.InferenceServerClient(shipped_server.address) as client:
        predicted = [
            triton_infer(client, model, batch, True).as_numpy("label") for batch in np.split(pixels[:, None], 10)
        ]
    assert np.mean(np.concatenate(predicted) == labels) == pytest.approx(expected, abs=1e-9)


def test_nested_data_equal_flat_data(server):
    batch = random_images(2)
    nested = inference_request(batch)
    nested["inputs"][0]["data"] = batch.tolist()
    assert infer(server, nested) == infer(server, inference_request(batch))


def test_json_input_with_binary_output(server, models_folder):
    body = json.dumps(
        inference_request(random_images(2), outputs=[{"name": "label", "parameters": {"binary_data": True}}])
    ).encode()
    status, content = server.ask("/v2/models/cnn/infer", body)
    assert status == 200
    assert (
        np.frombuffer(content[-16:], np.int64).tolist() == run_onnx(models_folder, "cnn", random_images(2))[0].tolist()
    )


INVALID_REQUESTS = {  # body, error
    "invalid JSON": (b"{", "request: expected JSON, got: "),
    "array instead of object": (b"[]", "request: expected an object with 'id', got an array"),
    "inputs missing": (b"{}", "inputs: expected an array, got nothing"),
    "inputs null": (b'{"inputs": null}', "inputs: expected an array, got null"),
    "many arrays": (
        b'{"inputs": [' + b"[], " * 100_000 + b"1]}",
        "expected at most 100,000 arrays and objects, got 100,",
    ),
    "deeply nested JSON": (b'{"inputs":' + b"[" * 5000, "request: expected JSON, got: "),
    "no input": ({"inputs": []}, "inputs: expected image, got none"),
    "number as id": (inference_request(random_images(1), id=1), "id: expected a string, got an integer"),
    "unknown output": (
        inference_request(random_images(1), outputs=[{"name": "x"}]),
        "tensor name: expected one of label, probabilities, got 'x'",
    ),
    "classification extension": (
        inference_request(random_images(1), outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]),
        "outputs: expected no 'classification', got one",
    ),
    "input twice": (
        {"inputs": inference_request(random_images(1))["inputs"] * 2},
        "inputs: expected image once, got it twice",
    ),
}
SHAPE_ERROR = "image.shape: expected [-1, 1, 28, 28] with -1 for any length >= 1, got "
UINT8_ERROR = "image.data: expected UINT8 values, got others: "
NESTING_ERROR = "image.data: expected flat data or rows nested like [1, 1, 28, 28], got other rows"
INVALID_INPUTS = {  # changed fields, error
    "unknown name": ({"name": "picture"}, "tensor name: expected one of image, got 'picture'"),
    "other datatype": ({"datatype": "FP32"}, "image.datatype: expected UINT8, got 'FP32'"),
    "NaN": ({"data": [float("nan")] * 784}, "request: expected JSON, got: "),
    "shape without batch": ({"shape": [1, 28, 28]}, SHAPE_ERROR + "[1, 28, 28]"),
    "negative batch size": ({"shape": [-1, 1, 28, 28]}, SHAPE_ERROR + "[-1, 1, 28, 28]"),
    "batch size 0": ({"shape": [0, 1, 28, 28], "data": []}, SHAPE_ERROR + "[0, 1, 28, 28]"),
    "huge batch size": ({"shape": [2**62, 1, 28, 28]}, "image.shape: expected a batch size of at most 1024, got 4611"),
    "nested shape": ({"shape": json.loads("[" * 900 + "]" * 900)}, "got elements that are not integers"),
    "float in shape": ({"shape": [1.0, 1, 28, 28]}, "got elements that are not integers"),
    "too few values": ({"data": [0] * 783}, "image.data: expected 784 values, got 783"),
    "too many values": ({"data": [0] * 785}, "image.data: expected 784 values, got 785 or more"),
    "values above 255": ({"data": [256] * 784}, UINT8_ERROR),
    "values below 0": ({"data": [-1] * 784}, UINT8_ERROR),
    "fractions": ({"data": [0.5] * 784}, UINT8_ERROR),
    "strings": ({"data": ["1"] * 784}, UINT8_ERROR),
    "nulls": ({"data": [None] * 784}, UINT8_ERROR),
    "ragged rows": ({"data": [[0] * 700, [0] * 84]}, NESTING_ERROR),
    "row among numbers": ({"data": [[0] * 783, 0]}, NESTING_ERROR),
    "binary data missing": (
        {"parameters": {"binary_data_size": 784}},
        "image: expected 784 bytes after the JSON, got 0",
    ),
    "binary_data_size too small": (
        {"parameters": {"binary_data_size": 783}},
        "image.binary_data_size: expected 784, got 783",
    ),
    "binary_data_size negative": (
        {"parameters": {"binary_data_size": -1}},
        "image.binary_data_size: expected 784, got -1",
    ),
}
for name, (change, error) in INVALID_INPUTS.items():
    (image,) = inference_request(random_images(1))["inputs"]
    INVALID_REQUESTS[name] = ({"inputs": [image | change]}, error)


@pytest.mark.parametrize("case", INVALID_REQUESTS)
def test_an_invalid_request_is_refused_with_the_reason(server, case):
    content, error = INVALID_REQUESTS[case]
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, answer = server.json("/v2/models/cnn/infer", body)
    assert status == 400
    assert error in answer["error"]


@pytest.mark.parametrize(
    ("binary", "length", "error"),
    [
        (b"", None, "image: expected 784 bytes after the JSON, got 0"),
        (b"0" * 783, None, "image: expected 784 bytes after the JSON, got 783"),
        (b"0" * 785, None, "binary data: expected 784 bytes after the JSON, got 785"),
        (b"0" * 784, "100000", "Inference-Header-Content-Length: expected at most "),
        (b"0" * 784, "-1", "Inference-Header-Content-Length: expected a number of bytes, got '-1'"),
        (b"0" * 784, "9" * 5000, "Inference-Header-Content-Length: expected a number of bytes, got '999"),
        (b"0" * 784, "10", "request: expected JSON, got: "),
    ],
)
def test_invalid_binary_data_are_refused_with_the_reason(server, binary, length, error):
    content = inference_request(random_images(1))
    content["inputs"][0]["parameters"] = {"binary_data_size": 784}
    body, headers = binary_request(content, binary)
    if length:
        headers = {"Inference-Header-Content-Length": length}
    status, answer = server.json("/v2/models/cnn/infer", body, **headers)
    assert status == 400
    assert answer["error"].startswith(error)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nothing", 404),
        ("/v2/models/nothing/ready", 404),
        ("/v2/models/cnn/versions/2", 404),
        ("/v2/models/cnn/versions/one/ready", 404),
        ("/v2/models/..%2F..%2Fetc%2Fpasswd", 404),
        ("/v2/models/%2e%2e/ready", 404),
        ("/v2/models/cnn%00", 404),
        ("/v2/models/cnn/infer", 405),
        ("/v2/models/" + "x" * 5000, 404),
        ("/page.js/../../models.py", 404),
        ("/page.js%0A", 404),
        ("/v2/models/cnn/ready%0A", 404),
        ("/unknown", 404),
    ],
)
def test_an_unknown_path_is_answered_with_an_error(server, path, status):
    answered_status, answer = server.json(path)
    assert answered_status == status
    assert answer["error"]


def test_an_unknown_model_or_version_is_named(server):
    _, answer = server.json("/v2/models/nothing")
    assert answer["error"] == "model: expected one of cnn, cnn_int8, fnn, fnn_int8, got 'nothing'"
    _, answer = server.json("/v2/models/cnn/versions/2")
    assert answer["error"] == "version of cnn: expected 1, got '2'"


def test_a_compressed_body_is_refused(server):
    status, answer = infer(server, inference_request(random_images(1)), **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (415, "Content-Encoding: expected identity, got 'gzip'")


def send_raw(server, content: bytes, end: bool = True) -> bytes:
    """Send bytes and, with `end`, close the sending side; return everything received until the server closes."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def limited_server(models_folder):
    """A server with low limits."""
    limits = ("--max-body", "2000", "--max-batch", "2", "--max-connections", "3", "--timeout", "1")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *limits) as running:
        yield running


def test_a_body_above_the_limit_is_refused(limited_server):
    status, answer = infer(limited_server, inference_request(random_images(1)))
    assert (status, answer["error"]) == (413, "body: expected at most 2000 bytes, got more")


def test_a_chunked_body_above_the_limit_is_refused(limited_server):
    head = b"POST /digits HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = send_raw(limited_server, head + b"3e8\r\n" + b"0" * 1000 + b"\r\n3e9\r\n" + b"0" * 1001 + b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_batch_above_the_limit_is_refused(limited_server):
    content = {"name": "image", "shape": [3, 1, 28, 28], "datatype": "UINT8", "data": []}
    status, answer = infer(limited_server, {"inputs": [content]})
    assert (status, answer["error"]) == (400, "image.shape: expected a batch size of at most 2, got 3")


@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", b"X-Long: " + b"x" * 20_000])
def test_headers_above_the_limit_are_refused(server, header):
    answer = send_raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + header)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"headers: expected at most 16384 bytes, got more" in answer


def test_data_that_are_not_http_are_refused(server):
    answer = send_raw(server, b"hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"request: expected HTTP/1.1, got other data" in answer


@pytest.mark.parametrize(
    "part", [b"G", b"GET /v2 HTTP/1.1\r\nA: b\r\n", b"POST /digits HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"]
)
def test_an_incomplete_request_times_out(limited_server, part):
    host, port = limited_server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(part)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request: expected to be complete after 1 seconds, got a part" in answer
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"POST /unknown HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"ab"],  # answered before the body arrives
        [b"GET /v2 HTTP/1.1\r\n\r\nPOST /digits HTTP/1.1\r\nContent-Length: 2\r\n\r\na"],
        [b"GET /v2 HTTP/1.1\r\n\r\n", b"\r\n"],
    ],
)
def test_an_idle_connection_is_closed_after_the_timeout(limited_server, parts):
    host, port = limited_server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.2)
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("path", ["/v2/models/cnn/infer", "/unknown"])
def test_a_refused_request_gets_one_response(limited_server, path):
    host, port = limited_server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
        answer = connection.recv(65536)  # possibly only its beginning
        connection.sendall(b" " * 60_000)
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65536):
                answer += more
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1") == 1


def test_an_offer_to_upgrade_to_http2_is_ignored(server):
    """Java's HTTP client makes this offer with every request."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    host, port = server.address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", "/v2/models/cnn/infer", json.dumps(inference_request(random_images(1))), offer)
    assert connection.getresponse().status == 200


def test_chunked_trailers_are_limited(limited_server):
    host, port = limited_server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /digits HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises(ConnectionError):
            for number in range(1_000_000):
                connection.sendall(b"A%d: b\r\n" % number * 100)


def test_invalid_pipelined_data_do_not_change_the_response_before_them(server):
    body = json.dumps(inference_request(random_images(1000))).encode()
    head = b"POST /v2/models/cnn/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = send_raw(server, head + body + b"\0\0\r\n\r\n", end=False)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_up_to_the_limit(server):
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert send_raw(server, 30 * request + last, end=False).count(b"HTTP/1.1 200 ") == 31
    assert 31 < send_raw(server, 500 * request, end=False).count(b"HTTP/1.1 200 ") < 100


def test_the_memory_for_concurrent_bodies_is_limited(models_folder):
    head = b"POST /digits HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--max-body", "1000") as running:
        host, port = running.address.split(":")
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(33):
                connections.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=30)))
                connections[-1].sendall(head + bytes(999))
            (refused, *_), *_ = select.select(connections, [], [], 30)
            assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
        while running.ask("/digits", bytes(1000))[0] != 415:
            time.sleep(0.05)


def test_an_inference_request_waits_for_one_picture_at_most(models_folder):
    picture = io.BytesIO()
    Image.new("L", (4000, 4000)).save(picture, "PNG")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--workers", "1") as server, ThreadPoolExecutor(8) as pool:
        pictures = [pool.submit(server.ask, "/digits", picture.getvalue()) for _ in range(8)]
        wait(pictures, return_when=FIRST_COMPLETED)
        assert infer(server, inference_request(random_images(100)))[0] == 200
        assert sum(each.done() for each in pictures) < 5
    assert [each.result()[0] for each in pictures] == 8 * [422]  # the picture is empty


def test_a_picture_is_not_decoded_after_the_client_has_disconnected(models_folder):
    picture = io.BytesIO()
    Image.new("L", (4000, 4000)).save(picture, "PNG")
    content = picture.getvalue()
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--max-body", "200000") as server:
        for body in 10 * [content, content + bytes(150_000)]:
            host, port = server.address.split(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(b"POST /digits HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert server.ask("/digits", content)[0] == 422
        lines = server.ask("/metrics")[1].decode().splitlines()
    (decoded,) = (line for line in lines if line.startswith("serving_digit_seconds_count"))
    assert float(decoded.split()[1]) < 10
    assert 'serving_requests_total{endpoint="read_digits",model="",status="499"}' in "\n".join(lines)


def test_connections_above_the_limit_are_refused_until_others_close(limited_server):
    host, port = limited_server.address.split(":")
    connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(3)]
    answer = send_raw(limited_server, b"")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connections: expected at most 3, got more; try again later" in answer
    for connection in connections:
        connection.close()
    while limited_server.ask("/v2")[0] != 200:
        time.sleep(0.05)


def test_requests_are_counted_in_metrics_and_logged(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--log-requests") as running:
        infer(running, inference_request(random_images(5)))
        infer(running, {}, "fnn")
        running.ask("/unknown")
        _, content = running.ask("/metrics")
        running.process.terminate()
        running.process.wait(timeout=30)
        running.log.seek(0)
        log = running.log.read()
    lines = content.decode().splitlines()
    assert 'serving_requests_total{endpoint="infer",model="cnn",status="200"} 1.0' in lines
    assert 'serving_requests_total{endpoint="infer",model="fnn",status="400"} 1.0' in lines
    assert 'serving_images_total{model="cnn"} 5.0' in lines
    for stage in ("receive", "parse", "infer", "serialize"):
        assert f'serving_stage_seconds_count{{model="cnn",stage="{stage}"}} 1.0' in lines
    requests = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(it["method"], it["path"], it["status"]) for it in requests if "health" not in it["path"]] == [
        ("POST", "/v2/models/cnn/infer", 200),
        ("POST", "/v2/models/fnn/infer", 400),
        ("GET", "/unknown", 404),
        ("GET", "/metrics", 200),
    ]


def test_sigterm_shuts_down_gracefully(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        host, port = running.address.split(":")
        body = json.dumps(inference_request(random_images(2))).encode()
        accepted = http.client.HTTPConnection(host, int(port), timeout=30)
        accepted.putrequest("POST", "/v2/models/cnn/infer")
        accepted.putheader("Content-Length", str(len(body)))
        accepted.endheaders(body[:-1])
        idle = socket.create_connection((host, int(port)), timeout=30)
        running.ask("/v2")  # when this is answered, the server has received the request before it, too
        running.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        assert running.process.poll() is None
        accepted.send(body[-1:])
        answer = accepted.getresponse()
        assert (answer.status, len(json.load(answer)["outputs"])) == (200, 2)
        assert running.process.wait(timeout=30) == 0


@pytest.fixture
def repository(models_folder, tmp_path):
    return shutil.copytree(models_folder / artifacts.MODEL_REPOSITORY, tmp_path / "model_repository")


def test_the_server_does_not_start_with_a_corrupt_model(repository):
    file = repository / "fnn" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    ended = not_serving(repository)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"serving: {file}: expected an ONNX model, got: ")
    assert ended.stderr.count("\n") == 1


def test_the_server_does_not_start_without_models(tmp_path):
    ended = not_serving(tmp_path)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"serving: {tmp_path}: expected NAME/VERSION/model.onnx, got no model; `make repro` builds them\n",
    )


def save_model(
    file: Path, operator: str, inputs: str, shape: list, kind=TensorProto.FLOAT, **constants: np.ndarray
) -> None:
    """Save a model of one operator, whose arguments are the constants and then the inputs, with names of one letter."""
    values = {name: helper.make_tensor_value_info(name, kind, shape) for name in (*inputs, "result")}
    result = values.pop("result")
    node = helper.make_node(operator, [*constants, *inputs], ["result"])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", list(values.values()), [result], tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)


def test_the_server_does_not_start_with_an_unsupported_datatype(repository):
    file = repository / "fnn" / "1" / "model.onnx"
    save_model(file, "Identity", "t", ["batch"], TensorProto.STRING)
    ended = not_serving(repository)
    assert f"{file}: expected an ONNX model, got: t: expected one of tensor(bool), " in ended.stderr
    assert ended.stderr.endswith(", got tensor(string)\n")


def test_a_model_with_several_float_inputs_is_served(tmp_path):
    save_model(tmp_path / "add" / "3" / "model.onnx", "Add", "ab", ["batch", 2])
    a = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
    b = {"name": "b", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    tail = np.array([1, np.nan], np.float32).tobytes()
    with serving(tmp_path) as running:
        body, headers = binary_request({"inputs": [b, a]}, tail)
        status, answer = running.json("/v2/models/add/versions/3/infer", body, **headers)
        assert (status, answer["outputs"][0]["data"]) == (200, [2.0, None])
        two = {**a, "shape": [2, 2], "data": [1, 2, 3, 4]}
        body, headers = binary_request({"inputs": [b, two]}, tail)
        status, answer = running.json("/v2/models/add/infer", body, **headers)
        assert (status, answer["error"]) == (400, "inputs: expected one batch size, got [1, 2]")


def test_requests_of_different_shapes_are_not_batched(tmp_path):
    save_model(tmp_path / "minus" / "1" / "model.onnx", "Neg", "x", ["batch", "n"])

    def minus(length: int) -> list[float]:
        x = {"name": "x", "shape": [1, length], "datatype": "FP32", "data": list(range(length))}
        return infer(running, {"inputs": [x]}, "minus")[1]["outputs"][0]["data"]

    with serving(tmp_path) as running, ThreadPoolExecutor(16) as pool:
        lengths = [1 + number % 5 for number in range(200)]
        assert list(pool.map(minus, lengths)) == [[-number for number in range(length)] for length in lengths]


def test_only_the_invalid_request_of_a_batch_fails(tmp_path):
    model = tmp_path / "look_up" / "1" / "model.onnx"
    save_model(model, "Gather", "x", ["batch"], TensorProto.INT64, table=np.arange(4))

    def look_up(value: int) -> int:
        x = {"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}
        return infer(running, {"inputs": [x]}, "look_up")[0]

    with serving(tmp_path) as running, ThreadPoolExecutor(16) as pool:
        values = [3, 3, 3, 9] * 50
        assert list(pool.map(look_up, values)) == [200, 200, 200, 400] * 50


def test_numbers_out_of_range_are_refused(tmp_path):
    save_model(tmp_path / "minus" / "1" / "model.onnx", "Neg", "x", ["batch"])
    with serving(tmp_path) as running:
        x = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1e39]}
        status, answer = infer(running, {"inputs": [x]}, "minus")
    assert status == 400
    assert answer["error"].startswith("x.data: expected FP32 values, got others: ")


def test_nonzero_bytes_are_true_in_boolean_tensors(tmp_path):
    save_model(tmp_path / "not" / "1" / "model.onnx", "Not", "x", ["batch"], TensorProto.BOOL)
    x = {"name": "x", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}
    body, headers = binary_request({"inputs": [x]}, bytes([0, 2, 255]))
    with serving(tmp_path) as running:
        _, answer = running.json("/v2/models/not/infer", body, **headers)
    assert answer["outputs"][0]["data"] == [True, False, False]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--port", "99999", "expected a port from 0 to 65535, got '99999'"),
        ("--workers", "0", "expected an integer >= 1, got '0'"),
        ("--timeout", "soon", "expected an integer >= 1, got 'soon'"),
    ],
)
def test_an_invalid_option_is_refused_with_the_reason(models_folder, option, value, error):
    ended = not_serving(models_folder, option, value)
    assert ended.returncode == 2
    assert f"argument {option}: {error}\n" in ended.stderr


def test_the_latest_version_is_served(repository):
    shutil.copytree(repository / "cnn" / "1", repository / "cnn" / "10")
    shutil.copytree(repository / "cnn" / "1", repository / "cnn" / "9")
    with serving(repository) as running:
        assert running.json("/v2/models/cnn")[1]["versions"] == ["10"]


def write_lock(repository: Path, lock: Path) -> None:
    """Write a dvc.lock with the MD5 digests of a repository's files."""
    outs = [
        {
            "path": f"artifacts/model_repository/{file.relative_to(repository)}",
            "md5": md5(file.read_bytes()).hexdigest(),
        }
        for file in repository.rglob("*")
        if file.is_file()
    ]
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"export": {"outs": outs}}}))  # JSON is YAML, too


def test_files_that_match_the_lock_are_served(repository, tmp_path):
    write_lock(repository, tmp_path / "dvc.lock")
    with serving(repository, "--lock", str(tmp_path / "dvc.lock")) as running:
        assert running.json("/v2/models/cnn/ready")[0] == 200


@pytest.mark.parametrize("name", ["fnn/1/model.onnx", "fnn/labels.txt"])
def test_the_server_does_not_start_with_a_file_that_differs_from_the_lock(repository, tmp_path, name):
    lock, file = tmp_path / "dvc.lock", repository / name
    write_lock(repository, lock)
    locked = md5(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes() + b"\n")
    found = md5(file.read_bytes()).hexdigest()
    ended = not_serving(repository, "--lock", str(lock))
    error = f"{file}: expected MD5 {locked}, got {found}; remove the file, then `dvc checkout` restores it"
    assert (ended.returncode, ended.stderr) == (1, f"serving: {error}\n")


def test_the_server_does_not_start_with_a_file_that_is_not_in_the_lock(repository, tmp_path):
    lock = tmp_path / "dvc.lock"
    write_lock(repository, lock)
    (repository / "fnn").rename(repository / "mine")
    ended = not_serving(repository, "--lock", str(lock))
    error = f"{lock}: expected an output that ends with mine/labels.txt, got none"
    assert (ended.returncode, ended.stderr) == (1, f"serving: {error}\n")


@pytest.mark.parametrize("content", [None, "text", "stages: {fnn: {outs: [model.onnx]}}"])
def test_the_server_does_not_start_with_an_invalid_lock(repository, tmp_path, content):
    lock = tmp_path / "dvc.lock"
    if content:
        lock.write_text(content)
    ended = not_serving(repository, "--lock", str(lock))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"serving: {lock}: expected ")
    assert ended.stderr.count("\n") == 1


def test_serving_imports_neither_the_pipeline_nor_its_dependencies():
    code = "import sys, serving.__main__, serving.classify; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split())
    assert "onnxruntime" in modules
    assert not {"torch", "dvc", "onnx", "stages", "checks", "scipy", "sklearn", "matplotlib"} & modules
