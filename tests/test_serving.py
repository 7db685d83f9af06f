"""The server from outside: the protocol through Triton's own client, its limits, its start and its stop."""

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
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stages import artifacts
from tests.conftest import PROJECT, not_serving, serving

MODELS = ("cnn", "cnn_int8", "fnn", "fnn_int8")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)


def expected(folder, model: str, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / artifacts.onnx(model))
    return session.run(["label", "probabilities"], {"image": batch})


def message(batch: np.ndarray, **more) -> dict:
    image = {"name": "image", "shape": batch.shape, "datatype": "UINT8", "data": batch.ravel().tolist()}
    return {"inputs": [image], **more}


def infer(server, content: dict, model: str = "cnn", **headers: str) -> tuple[int, dict]:
    return server.json(f"/v2/models/{model}/infer", json.dumps(content).encode(), **headers)


def with_bytes(content: dict, tail: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with bytes behind the JSON, and its header."""
    head = json.dumps(content).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))}


@pytest.fixture
def client(server):
    with tritonclient.http.InferenceServerClient(server.address) as client:
        yield client


def ask(client, model: str, batch: np.ndarray, binary: bool, outputs: tuple[str, ...] = (), **options):
    """Ask through Triton's client."""
    image = tritonclient.http.InferInput("image", batch.shape, "UINT8")
    image.set_data_from_numpy(batch, binary_data=binary)
    wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in outputs]
    return client.infer(model, [image], outputs=wanted or None, **options)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("version", ["", "1"])
def test_tritons_client_learns_everything_about_a_model(client, model, version):
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


def test_tritons_client_learns_everything_about_the_server(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "mnist-pipeline"
    assert metadata["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_tritons_client_gets_what_the_runtime_answers(client, models_folder, model, binary, size):
    batch = images(size)
    label, probabilities = expected(models_folder, model, batch)
    result = ask(client, model, batch, binary, ("probabilities", "label"), model_version="1", request_id="42")
    assert result.get_response()["id"] == "42"
    np.testing.assert_array_equal(result.as_numpy("label"), label)
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)


def test_without_a_choice_all_outputs_come(client):
    result = ask(client, "fnn", images(3), binary=True)
    assert result.as_numpy("label").shape == (3,)
    assert result.as_numpy("probabilities").shape == (3, 10)


def test_only_what_is_asked_for_comes(client):
    result = ask(client, "fnn", images(3), True, ("label",))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label"]


def test_requests_at_the_same_time_get_their_own_answers(server, models_folder):
    batches = [images(1 + seed % 40, seed) for seed in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda batch: infer(server, message(batch)), batches))
    for batch, (status, answer) in zip(batches, answers):
        _, probabilities = answer["outputs"]
        assert (status, probabilities["shape"]) == (200, [len(batch), 10])
        expected_probabilities = expected(models_folder, "cnn", batch)[1]
        np.testing.assert_allclose(probabilities["data"], expected_probabilities.ravel(), atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_test_set_gets_the_labels_that_verify_saw(shipped_server, test_set, model):
    pixels, labels = test_set
    float32 = model.removesuffix("_int8")
    if model == float32:
        seen = artifacts.read_json(PROJECT / artifacts.verification(model))["onnx_accuracy"]
    else:
        seen = artifacts.read_json(PROJECT / artifacts.verification_int8(float32))["accuracy"]
    with tritonclient.http.InferenceServerClient(shipped_server.address) as client:
        got = [ask(client, model, batch, True).as_numpy("label") for batch in np.split(pixels[:, None], 10)]
    assert np.mean(np.concatenate(got) == labels) == pytest.approx(seen, abs=1e-9)


def test_data_may_be_nested(server):
    batch = images(2)
    nested = message(batch)
    nested["inputs"][0]["data"] = batch.tolist()
    assert infer(server, nested) == infer(server, message(batch))


def test_input_as_json_and_output_as_bytes(server, models_folder):
    body = json.dumps(message(images(2), outputs=[{"name": "label", "parameters": {"binary_data": True}}])).encode()
    status, content = server.ask("/v2/models/cnn/infer", body)
    assert status == 200
    assert np.frombuffer(content[-16:], np.int64).tolist() == expected(models_folder, "cnn", images(2))[0].tolist()


WRONG = {
    "no JSON": (b"{", "the request is not JSON"),
    "no object": (b"[]", "an array stands where an object with 'id' is expected"),
    "no inputs": (b"{}", "'inputs' is missing"),
    "inputs of null": (b'{"inputs": null}', "'inputs' is null; allowed: an array"),
    "many lists": (b'{"inputs": [' + b"[], " * 100_000 + b"1]}", "too many arrays; allowed: 100,000"),
    "deep JSON": (b'{"inputs":' + b"[" * 5000, "not JSON"),
    "no input": ({"inputs": []}, "the input image is missing"),
    "an id that is a number": (message(images(1), id=1), "'id' is an integer; allowed: a string"),
    "an unknown output": (message(images(1), outputs=[{"name": "x"}]), "no tensor 'x'; allowed: label, probabilities"),
    "the likeliest classes alone": (
        message(images(1), outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]),
        "'classification' is not known here",
    ),
    "an input twice": ({"inputs": message(images(1))["inputs"] * 2}, "given twice"),
}
WRONG_INPUT = {
    "an unknown name": ({"name": "picture"}, "there is no tensor 'picture'; allowed: image"),
    "another datatype": ({"datatype": "FP32"}, "image has the datatype FP32; allowed: UINT8"),
    "NaN": ({"data": [float("nan")] * 784}, "not JSON"),
    "a shape without batch": ({"shape": [1, 28, 28]}, "allowed: [-1, 1, 28, 28]"),
    "a negative batch": ({"shape": [-1, 1, 28, 28]}, "allowed: [-1, 1, 28, 28]"),
    "no image": ({"shape": [0, 1, 28, 28], "data": []}, "allowed: [-1, 1, 28, 28]"),
    "a huge batch": ({"shape": [2**62, 1, 28, 28]}, "allowed: 1 to 1024"),
    "a deep shape": ({"shape": json.loads("[" * 900 + "]" * 900)}, "allowed: [-1, 1, 28, 28]"),
    "a batch of 1.0": ({"shape": [1.0, 1, 28, 28]}, "allowed: [-1, 1, 28, 28]"),
    "too few values": ({"data": [0] * 783}, "image has 783 values"),
    "too many values": ({"data": [0] * 785}, "image has more values than its shape [1, 1, 28, 28] needs"),
    "values above 255": ({"data": [256] * 784}, "not all UINT8"),
    "values below 0": ({"data": [-1] * 784}, "not all UINT8"),
    "fractions": ({"data": [0.5] * 784}, "not all UINT8"),
    "strings": ({"data": ["1"] * 784}, "not all UINT8"),
    "nulls": ({"data": [None] * 784}, "not all UINT8"),
    "ragged rows": ({"data": [[0] * 700, [0] * 84]}, "not nested as the shape"),
    "a row among numbers": ({"data": [[0] * 783, 0]}, "not nested as the shape"),
    "no bytes": ({"parameters": {"binary_data_size": 784}}, "needs 784 bytes behind the JSON; there are 0"),
    "a wrong number of bytes": ({"parameters": {"binary_data_size": 783}}, "its shape needs 784"),
    "a negative number of bytes": ({"parameters": {"binary_data_size": -1}}, "its shape needs 784"),
}
for name, (change, error) in WRONG_INPUT.items():
    (image,) = message(images(1))["inputs"]
    WRONG[name] = ({"inputs": [image | change]}, error)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_what_is_wrong(server, case):
    content, error = WRONG[case]
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, answer = server.json("/v2/models/cnn/infer", body)
    assert status == 400
    assert error in answer["error"]


@pytest.mark.parametrize(
    ("tail", "length", "error"),
    [
        (b"", None, "needs 784 bytes behind the JSON; there are 0"),
        (b"0" * 783, None, "needs 784 bytes behind the JSON; there are 783"),
        (b"0" * 785, None, "1 bytes follow the inputs"),
        (b"0" * 784, "100000", "Inference-Header-Content-Length is 100000"),
        (b"0" * 784, "-1", "allowed: a number of bytes"),
        (b"0" * 784, "9" * 5000, "Inference-Header-Content-Length is '999"),
        (b"0" * 784, "10", "not JSON"),
    ],
)
def test_wrong_bytes_are_told(server, tail, length, error):
    content = message(images(1))
    content["inputs"][0]["parameters"] = {"binary_data_size": 784}
    body, headers = with_bytes(content, tail)
    if length:
        headers = {"Inference-Header-Content-Length": length}
    status, answer = server.json("/v2/models/cnn/infer", body, **headers)
    assert (status, error in answer["error"]) == (400, True), answer


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
        ("/elsewhere", 404),
    ],
)
def test_wrong_paths_are_told(server, path, status):
    got, answer = server.json(path)
    assert got == status
    assert answer["error"]


def test_a_compressed_body_is_refused(server):
    status, answer = infer(server, message(images(1)), **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (415, "the body is compressed; allowed: plain")


def raw(server, content: bytes, end: bool = True) -> bytes:
    """Send bytes and, if wanted, their end; return all that comes until the server closes."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def narrow(models_folder):
    """A server with low limits."""
    limits = ("--max-body", "2000", "--max-batch", "2", "--max-connections", "3", "--timeout", "1")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *limits) as running:
        yield running


def test_a_large_body_is_refused(narrow):
    status, answer = infer(narrow, message(images(1)))
    assert (status, answer["error"]) == (413, "the body is too large; allowed: 2000 bytes")


def test_a_large_body_in_chunks_is_refused(narrow):
    head = b"POST /digits HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = raw(narrow, head + b"3e8\r\n" + b"0" * 1000 + b"\r\n3e9\r\n" + b"0" * 1001 + b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_large_batch_is_refused(narrow):
    content = {"name": "image", "shape": [3, 1, 28, 28], "datatype": "UINT8", "data": []}
    status, answer = infer(narrow, {"inputs": [content]})
    assert (status, answer["error"]) == (400, "image has a batch of 3; allowed: 1 to 2")


@pytest.mark.parametrize("head", [b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", b"X-Long: " + b"x" * 20_000])
def test_long_headers_are_refused(server, head):
    answer = raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + head)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"the headers are too long; allowed: 16384 bytes" in answer


def test_what_is_no_http_is_refused(server):
    assert raw(server, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "begun", [b"G", b"GET /v2 HTTP/1.1\r\nA: b\r\n", b"POST /digits HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"]
)
def test_a_request_that_does_not_come_is_given_up(narrow, begun):
    host, port = narrow.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(begun)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"POST /elsewhere HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"ab"],  # answered before the body came
        [b"GET /v2 HTTP/1.1\r\n\r\nPOST /digits HTTP/1.1\r\nContent-Length: 2\r\n\r\na"],
        [b"GET /v2 HTTP/1.1\r\n\r\n", b"\r\n"],
    ],
)
def test_every_connection_ends(narrow, parts):
    host, port = narrow.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.2)
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("path", ["/v2/models/cnn/infer", "/elsewhere"])
def test_a_request_is_answered_once(narrow, path):
    host, port = narrow.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
        answer = connection.recv(65536)  # or a part of it
        connection.sendall(b" " * 60_000)
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65536):
                answer += more
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1") == 1


def test_an_offer_of_another_protocol_is_ignored(server):
    """As Java's client makes it with every request."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    host, port = server.address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", "/v2/models/cnn/infer", json.dumps(message(images(1))), offer)
    assert connection.getresponse().status == 200


def test_trailers_are_limited(narrow):
    host, port = narrow.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /digits HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises(ConnectionError):
            for number in range(1_000_000):
                connection.sendall(b"A%d: b\r\n" % number * 100)


def test_a_running_request_is_not_given_anothers_error(server):
    body = json.dumps(message(images(1000))).encode()
    head = b"POST /v2/models/cnn/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = raw(server, head + body + b"\0\0\r\n\r\n", end=False)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_requests_sent_in_a_row_are_answered_up_to_a_limit(server):
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert raw(server, 30 * request + last, end=False).count(b"HTTP/1.1 200 ") == 31
    assert 31 < raw(server, 500 * request, end=False).count(b"HTTP/1.1 200 ") < 100


def test_what_is_received_at_the_same_time_is_limited(models_folder):
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


def test_a_batch_does_not_wait_for_all_pictures(models_folder):
    picture = io.BytesIO()
    Image.new("L", (4000, 4000)).save(picture, "PNG")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--workers", "1") as server, ThreadPoolExecutor(8) as pool:
        pictures = [pool.submit(server.ask, "/digits", picture.getvalue()) for _ in range(8)]
        wait(pictures, return_when=FIRST_COMPLETED)
        assert infer(server, message(images(100)))[0] == 200
        assert sum(each.done() for each in pictures) < 5
    assert [each.result()[0] for each in pictures] == 8 * [422]  # there is nothing to see


def test_a_picture_is_not_read_for_a_client_that_has_left(models_folder):
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
    (read,) = (line for line in lines if line.startswith("serving_digit_seconds_count"))
    assert float(read.split()[1]) < 10
    assert 'serving_requests_total{endpoint="read_digit",model="",status="499"}' in "\n".join(lines)


def test_a_connection_too_many_is_refused_and_room_comes_back(narrow):
    host, port = narrow.address.split(":")
    connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(3)]
    assert raw(narrow, b"").startswith(b"HTTP/1.1 503 ")
    for connection in connections:
        connection.close()
    while narrow.ask("/v2")[0] != 200:
        time.sleep(0.05)


def test_metrics_and_log_tell_what_happened(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--log-requests") as running:
        infer(running, message(images(5)))
        infer(running, {}, "fnn")
        running.ask("/elsewhere")
        _, content = running.ask("/metrics")
        running.process.terminate()
        running.process.wait(timeout=30)
        running.log.seek(0)
        log = running.log.read()
    lines = content.decode().splitlines()
    assert 'serving_requests_total{endpoint="infer",model="cnn",status="200"} 1.0' in lines
    assert 'serving_requests_total{endpoint="infer",model="fnn",status="400"} 1.0' in lines
    assert 'serving_images_total{model="cnn"} 5.0' in lines
    for stage in ("receive", "read", "run", "write"):
        assert f'serving_stage_seconds_count{{model="cnn",stage="{stage}"}} 1.0' in lines
    requests = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(it["method"], it["path"], it["status"]) for it in requests if "health" not in it["path"]] == [
        ("POST", "/v2/models/cnn/infer", 200),
        ("POST", "/v2/models/fnn/infer", 400),
        ("GET", "/elsewhere", 404),
        ("GET", "/metrics", 200),
    ]


def test_sigterm_finishes_what_was_accepted_and_refuses_what_is_new(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        host, port = running.address.split(":")
        body = json.dumps(message(images(2))).encode()
        accepted = http.client.HTTPConnection(host, int(port), timeout=30)
        accepted.putrequest("POST", "/v2/models/cnn/infer")
        accepted.putheader("Content-Length", str(len(body)))
        accepted.endheaders(body[:-1])
        idle = socket.create_connection((host, int(port)), timeout=30)
        running.ask("/v2")  # behind it, in the same queue: now the server knows of the request
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


def test_a_broken_model_is_named_at_the_not_serving(repository):
    file = repository / "fnn" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    ended = not_serving(repository)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"serving: {file} cannot be loaded: ")
    assert ended.stderr.count("\n") == 1


def test_a_folder_without_models_is_named(tmp_path):
    ended = not_serving(tmp_path)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"serving: {tmp_path} has no models, no NAME/VERSION/model.onnx; `make repro` makes them\n",
    )


def save(file: Path, operator: str, inputs: str, shape: list, kind=TensorProto.FLOAT, **constants: np.ndarray) -> None:
    """Make a model of one operator, which takes the constants and then the inputs, each of one letter."""
    values = {name: helper.make_tensor_value_info(name, kind, shape) for name in (*inputs, "result")}
    result = values.pop("result")
    node = helper.make_node(operator, [*constants, *inputs], ["result"])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", list(values.values()), [result], tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)


def test_a_model_of_strings_is_refused(repository):
    file = repository / "fnn" / "1" / "model.onnx"
    save(file, "Identity", "t", ["batch"], TensorProto.STRING)
    ended = not_serving(repository)
    assert f"{file} cannot be loaded: t is a tensor(string); allowed: tensor(bool), " in ended.stderr


def test_other_types_and_several_inputs_work(tmp_path):
    save(tmp_path / "add" / "3" / "model.onnx", "Add", "ab", ["batch", 2])
    a = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
    b = {"name": "b", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    tail = np.array([1, np.nan], np.float32).tobytes()
    with serving(tmp_path) as running:
        body, headers = with_bytes({"inputs": [b, a]}, tail)
        status, answer = running.json("/v2/models/add/versions/3/infer", body, **headers)
        assert (status, answer["outputs"][0]["data"]) == (200, [2.0, None])
        two = {**a, "shape": [2, 2], "data": [1, 2, 3, 4]}
        body, headers = with_bytes({"inputs": [b, two]}, tail)
        status, answer = running.json("/v2/models/add/infer", body, **headers)
        assert (status, answer["error"]) == (400, "the inputs have batches of [1, 2]; allowed: the same for all")


def test_requests_of_different_shapes_stay_apart(tmp_path):
    save(tmp_path / "minus" / "1" / "model.onnx", "Neg", "x", ["batch", "n"])

    def minus(length: int) -> list[float]:
        x = {"name": "x", "shape": [1, length], "datatype": "FP32", "data": list(range(length))}
        return infer(running, {"inputs": [x]}, "minus")[1]["outputs"][0]["data"]

    with serving(tmp_path) as running, ThreadPoolExecutor(16) as pool:
        lengths = [1 + number % 5 for number in range(200)]
        assert list(pool.map(minus, lengths)) == [[-number for number in range(length)] for length in lengths]


def test_a_value_that_the_model_cannot_take_fails_no_other_request(tmp_path):
    model = tmp_path / "look_up" / "1" / "model.onnx"
    save(model, "Gather", "x", ["batch"], TensorProto.INT64, table=np.arange(4))

    def look_up(value: int) -> int:
        x = {"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}
        return infer(running, {"inputs": [x]}, "look_up")[0]

    with serving(tmp_path) as running, ThreadPoolExecutor(16) as pool:
        values = [3, 3, 3, 9] * 50
        assert list(pool.map(look_up, values)) == [200, 200, 200, 400] * 50


def test_numbers_outside_a_type_are_refused(tmp_path):
    save(tmp_path / "minus" / "1" / "model.onnx", "Neg", "x", ["batch"])
    with serving(tmp_path) as running:
        x = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1e39]}
        status, answer = infer(running, {"inputs": [x]}, "minus")
    assert (status, "the data of x are not all FP32" in answer["error"]) == (400, True)


def test_any_byte_but_0_is_true(tmp_path):
    save(tmp_path / "not" / "1" / "model.onnx", "Not", "x", ["batch"], TensorProto.BOOL)
    x = {"name": "x", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}
    body, headers = with_bytes({"inputs": [x]}, bytes([0, 2, 255]))
    with serving(tmp_path) as running:
        _, answer = running.json("/v2/models/not/infer", body, **headers)
    assert answer["outputs"][0]["data"] == [True, False, False]


def test_a_port_that_is_none_is_refused(models_folder):
    assert "invalid port value: '99999'" in not_serving(models_folder, "--port", "99999").stderr


def test_the_latest_version_is_served(repository):
    shutil.copytree(repository / "cnn" / "1", repository / "cnn" / "10")
    shutil.copytree(repository / "cnn" / "1", repository / "cnn" / "9")
    with serving(repository) as running:
        assert running.json("/v2/models/cnn")[1]["versions"] == ["10"]


@pytest.mark.parametrize("content", [None, "text", "stages: {fnn: {outs: [model.onnx]}}"])
def test_a_lock_that_cannot_be_read_is_named(repository, tmp_path, content):
    lock = tmp_path / "dvc.lock"
    if content:
        lock.write_text(content)
    assert f"{lock} cannot be read as a dvc.lock: " in not_serving(repository, "--lock", str(lock)).stderr


def test_the_server_needs_neither_torch_nor_dvc():
    code = "import sys, serving.__main__, serving.classify; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split())
    assert "onnxruntime" in modules
    assert not {"torch", "dvc", "onnx", "stages", "scipy", "sklearn", "matplotlib"} & modules
