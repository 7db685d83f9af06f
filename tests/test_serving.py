"""The inference server as a process: protocol (with Triton's client), limits, start and graceful shutdown."""

import gzip
import http.client
import itertools
import json
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http

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
            {"name": "label", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }


def test_triton_client_reads_server_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("mnist-pipeline", __version__)
    assert {"classification", "model_configuration", "model_repository", "statistics"} < {*metadata["extensions"]}
    assert not any("shared_memory" in extension for extension in metadata["extensions"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_triton_client_gets_the_outputs_of_onnx_runtime(client, models_folder, model, binary, size):
    batch = random_images(size)
    label, probabilities = run_onnx(models_folder, model, batch)
    result = triton_infer(client, model, batch, binary, ("probabilities", "label"), model_version="1", request_id="42")
    assert result.get_response()["id"] == "42"
    np.testing.assert_array_equal(result.as_numpy("label"), label[:, None])
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)


def test_all_outputs_are_returned_by_default(client):
    result = triton_infer(client, "fnn", random_images(3), binary=True)
    assert result.as_numpy("label").shape == (3, 1)
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
    assert np.mean(np.concatenate(predicted)[:, 0] == labels) == pytest.approx(expected, abs=1e-9)


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
        "request: expected at most 20,000 arrays, objects and keys, got 100,003; send flat data",
    ),
    "deeply nested JSON": (b'{"inputs":' + b"[" * 5000, "request: expected JSON, got: "),
    "no input": ({"inputs": []}, "inputs: expected image, got none"),
    "number as id": (inference_request(random_images(1), id=1), "id: expected a string, got an integer"),
    "unknown output": (
        inference_request(random_images(1), outputs=[{"name": "x"}]),
        "output: expected one of label, probabilities, got 'x'",
    ),
    "negative number of classes": (
        inference_request(random_images(1), outputs=[{"name": "probabilities", "parameters": {"classification": -1}}]),
        "probabilities.classification: expected an integer >= 0, got -1",
    ),
    "object as parameter": (
        inference_request(random_images(1), parameters={"x": {}}),
        "parameters.x: expected a number, a boolean or a string, got an object",
    ),
    "nested parameter": (
        b'{"inputs": [], "parameters": {"x": ' + b"[" * 1000 + b"]" * 1000 + b"}}",
        "parameters.x: expected a number, a boolean or a string, got an array",
    ),
    "half of a surrogate pair": (b'{"id": "\\ud800", "inputs": [NaN]}', "request: expected JSON, got: "),
    "output in shared memory": (
        inference_request(random_images(1), outputs=[{"name": "label", "parameters": {"shared_memory_region": "r"}}]),
        "label: expected data in the request, got shared_memory_region",
    ),
    "input twice": (
        {"inputs": inference_request(random_images(1))["inputs"] * 2},
        "inputs: expected image once, got it twice",
    ),
}
SHAPE_ERROR = "image.shape: expected [-1, 1, 28, 28] with -1 for any length, got "
UINT8_ERROR = "image.data: expected UINT8 values, got others: "
NESTING_ERROR = "image.data: expected flat data or rows nested like [1, 1, 28, 28], got other rows"
INVALID_INPUTS = {  # changed fields, error
    "unknown name": ({"name": "picture"}, "input: expected one of image, got 'picture'"),
    "other datatype": ({"datatype": "FP32"}, "image.datatype: expected UINT8, got 'FP32'"),
    "NaN": ({"data": [float("nan")] * 784}, UINT8_ERROR),
    "shape without batch": ({"shape": [1, 28, 28]}, SHAPE_ERROR + "[1, 28, 28]"),
    "negative batch size": ({"shape": [-1, 1, 28, 28]}, SHAPE_ERROR + "[-1, 1, 28, 28]"),
    "batch size 0": (
        {"shape": [0, 1, 28, 28], "data": []},
        "image.shape: expected a batch size from 1 to 1024, got 0",
    ),
    "huge batch size": ({"shape": [2**62, 1, 28, 28]}, "image.shape: expected a batch size from 1 to 1024, got 4611"),
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
    "data twice": ({"parameters": {"binary_data_size": 784}}, "image: expected data or binary_data_size, got both"),
    "data in shared memory": (
        {"parameters": {"shared_memory_region": "r"}},
        "image: expected data in the request, got shared_memory_region",
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
    del content["inputs"][0]["data"]
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
        ("/v2/models/nothing/ready", 400),
        ("/v2/models/cnn/versions/2", 404),
        ("/v2/models/cnn/versions/one/ready", 400),
        ("/v2/models/..%2F..%2Fetc%2Fpasswd", 404),
        ("/v2/models/%2e%2e/ready", 400),
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


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "Identity"])
def test_bodies_may_be_compressed(server, encoding):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    body = json.dumps(inference_request(random_images(3))).encode()
    expected = server.ask("/v2/models/cnn/infer", body)
    assert server.ask("/v2/models/cnn/infer", compress(body), **{"Content-Encoding": encoding}) == expected


def test_compressed_bodies_are_limited_after_decompression(server):
    body = gzip.compress(bytes(2**25))
    status, answer = server.json("/v2/models/cnn/infer", body, **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (413, "body: expected at most 8388608 bytes after decompression, got more")


@pytest.mark.parametrize(
    ("encoding", "body", "status", "error"),
    [
        ("br", b"", 415, "Content-Encoding: expected identity, gzip or deflate, got 'br'"),
        ("gzip", b"{}", 400, "body: expected gzip, got other data: "),
        (
            "gzip",
            gzip.compress(b"{}", mtime=0)[:-1],
            400,
            "body: expected gzip, got an incomplete stream or data after it",
        ),
        ("deflate", zlib.compress(b"{}") + b"x", 400, "body: expected deflate, got an incomplete stream or data after"),
    ],
)
def test_invalid_compressed_bodies_are_refused(server, encoding, body, status, error):
    answered, answer = server.json("/v2/models/cnn/infer", body, **{"Content-Encoding": encoding})
    assert answered == status
    assert answer["error"].startswith(error)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br, gzip, deflate", "gzip"), ("identity", None), ("gzip;q=0", None)],
)
def test_responses_are_compressed_for_clients_that_accept_it(server, accepted, encoding):
    client = http.client.HTTPConnection(server.address, timeout=30)
    body = json.dumps(inference_request(random_images(3)))
    client.request("POST", "/v2/models/cnn/infer", body, {"Accept-Encoding": accepted})
    response = client.getresponse()
    assert response.getheader("Content-Encoding") == encoding
    decompress = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding]
    assert decompress(response.read()) == server.ask("/v2/models/cnn/infer", body.encode())[1]


def test_the_most_probable_classes_are_returned_by_class_count(server, models_folder):
    batch = random_images(5)
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    _, answer = infer(server, inference_request(batch, outputs=outputs))
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [5, 2])
    _, probabilities = run_onnx(models_folder, "cnn", batch)
    expected = [[f"{row[index]:f}:{index}:{index}" for index in np.argsort(-row)[:2]] for row in probabilities]
    assert output["data"] == [text for row in expected for text in row]


def test_a_request_without_json_is_the_only_input_s_data(server, models_folder):
    image = random_images(1)
    body, headers = image.tobytes(), {"Inference-Header-Content-Length": "0"}
    status, content = server.ask("/v2/models/cnn/infer", body, **headers)
    assert status == 200
    probabilities = np.frombuffer(content[-40:], np.float32)
    np.testing.assert_allclose(probabilities, run_onnx(models_folder, "cnn", image)[1][0], atol=1e-6)


def test_triton_client_reads_the_configuration_and_the_statistics(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        client = tritonclient.http.InferenceServerClient(running.address)
        config = client.get_model_config("cnn")
        assert (config["max_batch_size"], config["dynamic_batching"]["preferred_batch_size"]) == (1024, [32])
        assert config["input"][0]["dims"] == [1, 28, 28]
        for size in (3, 3, 7):
            triton_infer(client, "cnn", random_images(size), binary=True)
        infer(running, inference_request(random_images(1), id=1))
        (statistics,) = client.get_inference_statistics("cnn")["model_stats"]
        assert (statistics["inference_count"], statistics["execution_count"]) == (13, 3)
        assert [(it["batch_size"], it["compute_infer"]["count"]) for it in statistics["batch_stats"]] == [
            (3, 2),
            (7, 1),
        ]
        assert statistics["inference_stats"]["success"]["count"] == 3
        assert len(client.get_inference_statistics()["model_stats"]) == 4
        lines = running.ask("/metrics")[1].decode().splitlines()
        assert 'serving_batch_size_bucket{le="4",model="cnn",version="1"} 2.0' in lines
        assert 'serving_stage_seconds_count{model="cnn",stage="queue",version="1"} 3.0' in lines


@pytest.mark.parametrize("path", ["/v2/systemsharedmemory/region/r/register", "/v2/cudasharedmemory/status"])
def test_shared_memory_is_refused(server, path):
    status, answer = server.json(path, b"")
    assert (status, answer["error"]) == (501, "shared memory: expected data in requests; this server has no regions")


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
    assert 'serving_images_total{model="cnn",version="1"} 5.0' in lines
    for stage in ("receive", "parse", "queue", "infer", "serialize"):
        assert f'serving_stage_seconds_count{{model="cnn",stage="{stage}",version="1"}} 1.0' in lines
    requests = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(it["method"], it["path"], it["status"]) for it in requests if "health" not in it["path"]] == [
        ("POST", "/v2/models/cnn/infer", 200),
        ("POST", "/v2/models/fnn/infer", 400),
        ("GET", "/unknown", 404),
        ("GET", "/metrics", 200),
    ]


def test_port_0_is_any_free_one_that_the_log_names(models_folder):
    command = [sys.executable, "-m", "serving", str(models_folder / artifacts.MODEL_REPOSITORY), "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = (process.stderr.readline() for _ in range(100))
            addresses = (found[0] for line in lines if (found := re.findall(r"127.0.0.1:\d+", line)))
            http, grpc = itertools.islice(addresses, 2)
            with tritonclient.grpc.InferenceServerClient(grpc) as client:
                assert client.is_server_live()
            with tritonclient.http.InferenceServerClient(http) as client:
                assert client.is_server_live()
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--port", "99999", "expected a port from 0 to 65535, got '99999'"),
        ("--workers", "0", "expected an integer >= 1, got '0'"),
        ("--timeout", "soon", "expected an integer >= 1, got 'soon'"),
        ("--load-model", "cnn", "expected --model-control-mode explicit, got none"),
        ("--port", "65535", "expected --grpc-port with 65535, as no port follows, got none"),
        ("--model-control-mode", "x", "invalid choice: 'x' (choose from "),
    ],
)
def test_an_invalid_option_is_refused_with_the_reason(models_folder, option, value, error):
    ended = not_serving(models_folder, option, value)
    assert ended.returncode == 2
    assert f"argument {option}: {error}" in ended.stderr


def test_a_port_that_is_in_use_is_named(models_folder, server):
    ended = not_serving(models_folder / artifacts.MODEL_REPOSITORY, "--port", server.address.split(":")[1])
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"serving: HTTP: expected a free address, got {server.address}: ")


def test_serving_imports_neither_the_pipeline_nor_its_dependencies():
    code = "import sys, serving.__main__, serving.classify; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split())
    assert "onnxruntime" in modules
    assert not {"torch", "dvc", "onnx", "stages", "checks", "scipy", "sklearn", "matplotlib"} & modules
