"""The server over gRPC, with Triton's client."""

import contextlib
import http.client
import json
import queue
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from stages import artifacts
from tests.conftest import not_serving, serving, wait_until
from tests.foreign_models import save_model
from tests.test_serving import MODELS, infer, inference_request, random_images, run_onnx


@pytest.fixture
def client(server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_address) as client:
        yield client


def image_input(batch: np.ndarray) -> tritonclient.grpc.InferInput:
    image = tritonclient.grpc.InferInput("image", batch.shape, "UINT8")
    image.set_data_from_numpy(batch)
    return image


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_triton_client_gets_the_outputs_of_onnx_runtime(client, models_folder, model, size):
    batch = random_images(size)
    label, probabilities = run_onnx(models_folder, model, batch)
    result = client.infer(model, [image_input(batch)], request_id="42", model_version="1")
    assert (result.get_response().id, result.get_response().model_version) == ("42", "1")
    np.testing.assert_array_equal(result.as_numpy("label"), label[:, None])
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)


def test_typed_contents_equal_raw_contents(server):
    batch = random_images(2)
    request = service_pb2.ModelInferRequest(model_name="cnn")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=batch.shape)
    tensor.contents.uint_contents.extend(batch.ravel().tolist())
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        typed = stub.ModelInfer(request)
        tensor.ClearField("contents")
        request.raw_input_contents.append(batch.tobytes())
        assert stub.ModelInfer(request) == typed


def test_streamed_requests_are_answered_in_order_and_errors_do_not_end_the_stream(client):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    for number in range(20):
        batch = random_images(1 + number)
        client.async_stream_infer("cnn" if number != 10 else "nothing", [image_input(batch)], request_id=str(number))
    results = [answers.get(timeout=30) for _ in range(20)]
    client.stop_stream()
    assert isinstance(results.pop(10), InferenceServerException)
    assert [int(result.get_response().id) for result in results] == [*range(10), *range(11, 20)]


def test_concurrent_requests_over_both_protocols_get_their_own_outputs(client, server, models_folder):
    batches = [random_images(1 + seed % 40, seed) for seed in range(100)]

    def infer_twice(batch: np.ndarray) -> list[np.ndarray]:
        _, answer = infer(server, inference_request(batch))
        over_http = np.reshape(answer["outputs"][1]["data"], (-1, 10))
        return [over_http, client.infer("cnn", [image_input(batch)]).as_numpy("probabilities")]

    with ThreadPoolExecutor(8) as pool:
        for batch, answers in zip(batches, pool.map(infer_twice, batches)):
            for answer in answers:
                np.testing.assert_allclose(answer, run_onnx(models_folder, "cnn", batch)[1], atol=1e-6)


def test_the_most_probable_classes_are_returned_by_class_count(client, models_folder):
    batch = random_images(3)
    top = tritonclient.grpc.InferRequestedOutput("probabilities", class_count=2)
    classes = client.infer("cnn", [image_input(batch)], outputs=[top]).as_numpy("probabilities")
    _, probabilities = run_onnx(models_folder, "cnn", batch)
    expected = [[f"{row[index]:f}:{index}:{index}" for index in np.argsort(-row)[:2]] for row in probabilities]
    assert [[element.decode() for element in row] for row in classes] == expected


def test_triton_client_reads_metadata_configuration_statistics_and_index(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("cnn", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "mnist-pipeline"
    metadata = client.get_model_metadata("cnn")
    assert [(it.name, it.datatype, [*it.shape]) for it in metadata.outputs] == [
        ("label", "INT64", [-1, 1]),
        ("probabilities", "FP32", [-1, 10]),
    ]
    assert client.get_model_config("cnn").config.max_batch_size == 1024
    client.infer("fnn_int8", [image_input(random_images(5))])
    (statistics,) = client.get_inference_statistics("fnn_int8").model_stats
    assert 5 in {it.batch_size for it in statistics.batch_stats}
    assert {it.name for it in client.get_model_repository_index().models} == {*MODELS}


def change(**fields) -> service_pb2.ModelInferRequest:
    """Return an invalid request: a valid one with other fields of its input."""
    request = service_pb2.ModelInferRequest(model_name=fields.pop("model_name", "cnn"))
    request.raw_input_contents.append(fields.pop("raw", bytes(784)))
    request.inputs.add(**{"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28], **fields})
    return request


def with_outputs(count: int) -> service_pb2.ModelInferRequest:
    outputs = [service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="label")] * count
    return service_pb2.ModelInferRequest(model_name="cnn", outputs=outputs)


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (change(model_name="x"), "NOT_FOUND", "model: expected one of cnn, cnn_int8, fnn, fnn_int8, got 'x'"),
        (change(name="x"), "INVALID_ARGUMENT", "input: expected one of image, got 'x'"),
        (change(datatype="FP32"), "INVALID_ARGUMENT", "image.datatype: expected UINT8, got 'FP32'"),
        (change(shape=[784]), "INVALID_ARGUMENT", "image.shape: expected [-1, 1, 28, 28] with -1"),
        (change(shape=[2**40, 1, 28, 28]), "INVALID_ARGUMENT", "image.shape: expected a batch size from 1 to 1024"),
        (change(raw=bytes(783)), "INVALID_ARGUMENT", "image: expected 784 bytes for the shape [1, 1, 28, 28], got 783"),
        (change(raw=bytes(9 * 2**20)), "RESOURCE_EXHAUSTED", ""),
        (with_outputs(100_000), "INVALID_ARGUMENT", "request: expected at most 1000 inputs and outputs, got more"),
        (service_pb2.ModelInferRequest(model_name="cnn"), "INVALID_ARGUMENT", "inputs: expected image, got none"),
        (
            service_pb2.ModelInferRequest(model_name="cnn", raw_input_contents=[b""]),
            "INVALID_ARGUMENT",
            "raw_input_contents: expected one per input, 0, got 1",
        ),
    ],
)
def test_invalid_requests_get_the_status_and_reason_that_http_has(server, request_, code, details):
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request_)
    assert caught.value.code().name == code
    assert details in caught.value.details()


def test_a_parameter_without_a_value_is_ignored(server):
    request = change()
    request.inputs[0].parameters["x"].SetInParent()
    with grpc.insecure_channel(server.grpc_address) as channel:
        assert service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request).model_name == "cnn"


def test_contents_of_another_datatype_are_refused(server):
    request = service_pb2.ModelInferRequest(model_name="cnn")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 28, 28])
    tensor.contents.fp32_contents.extend([0] * 784)
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.details() == "image: expected uint_contents, got fp32_contents"


def test_shared_memory_is_not_implemented(client):
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_bytes_that_are_no_message_are_refused(server):
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "request: expected a message of the method's type, got other bytes"


def test_the_health_of_an_unknown_service_is_not_found(server):
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_the_standard_health_service_reports_serving(server, service):
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_half_precision_strings_and_booleans_are_served(tmp_path):
    kinds = {"FP16": TensorProto.FLOAT16, "BYTES": TensorProto.STRING, "BOOL": TensorProto.BOOL}
    for datatype, kind in kinds.items():
        save_model(tmp_path / datatype / "1" / "model.onnx", "Identity", "x", ["batch", 2], kind)
    values = {
        "FP16": np.array([[1, np.nan]], np.float16),
        "BYTES": np.array([["", "\xdf"]], np.object_),
        "BOOL": np.array([[True, False]]),
    }
    with serving(tmp_path) as running, InferenceServerClient(running.grpc_address) as client:
        for datatype, array in values.items():
            x = tritonclient.grpc.InferInput("x", array.shape, datatype)
            x.set_data_from_numpy(array)
            result = client.infer(datatype, [x]).as_numpy("result")
            expected = array if datatype != "BYTES" else np.array([[b"", "\xdf".encode()]], np.object_)
            np.testing.assert_array_equal(result, expected)


def test_models_are_loaded_and_unloaded_over_grpc(models_folder):
    options = ("--model-control-mode", "explicit", "--load-model", "cnn")
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY, *options) as running,
        InferenceServerClient(running.grpc_address) as client,
    ):
        client.load_model("fnn")
        client.unload_model("cnn")
        assert [client.is_model_ready(name) for name in ("cnn", "fnn")] == [False, True]
        with pytest.raises(InferenceServerException, match="load: expected one of "):
            client.load_model("nothing")


def test_requests_under_way_are_answered_after_sigterm(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running, ThreadPoolExecutor(4) as pool:
        client = InferenceServerClient(running.grpc_address)
        assert client.is_server_ready()  # so that it has a connection
        batch = random_images(1024)
        calls = [pool.submit(client.infer, "cnn", [image_input(batch)]) for _ in range(4)]
        running.process.terminate()
        assert [len(call.result().as_numpy("label")) for call in calls] == [1024] * 4
        assert running.process.wait(timeout=30) == 0


def test_an_idle_stream_does_not_delay_the_shutdown(models_folder):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        answers: queue.Queue = queue.Queue()
        with InferenceServerClient(running.grpc_address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("cnn", [image_input(random_images(1))])
            assert answers.get(timeout=30)[1] is None
            running.process.terminate()
            assert running.process.wait(timeout=15) == 0
            assert "got one that shuts down" in str(answers.get(timeout=30)[1])


def test_requests_over_grpc_are_counted_and_logged(models_folder):
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY, "--log-requests") as running,
        InferenceServerClient(running.grpc_address) as client,
    ):
        client.infer("cnn", [image_input(random_images(1))])
        with pytest.raises(InferenceServerException):
            client.infer("x", [image_input(random_images(1))])
        expected = {
            'serving_requests_total{endpoint="ModelInfer",model="cnn",status="OK"} 1.0',
            'serving_requests_total{endpoint="ModelInfer",model="",status="NOT_FOUND"} 1.0',
        }
        wait_until(lambda: expected <= {*running.ask("/metrics")[1].decode().splitlines()})  # counted after the answer
        running.process.terminate()
        running.process.wait(timeout=30)
        running.log.seek(0)
        lines = [json.loads(line) for line in running.log if "ModelInfer" in line]
        assert [line["status"] for line in lines] == ["OK", "NOT_FOUND"]


def test_idle_clients_give_way_to_others(models_folder):
    options = ("--max-connections", "4", "--timeout", "1")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options) as running:
        host, port = running.grpc_address.split(":")
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection((host, port), timeout=30)) for _ in range(4)]
            client = stack.enter_context(InferenceServerClient(running.grpc_address))
            wait_until(lambda: is_live(client))
            for each in idle:
                assert b"" in iter(partial(each.recv, 4096), None)
            time.sleep(3)  # the client's own connection is closed, and the next call opens another
            assert is_live(client)


def is_live(client: InferenceServerClient) -> bool:
    with contextlib.suppress(InferenceServerException):
        return client.is_server_live()
    return False


def test_a_grpc_port_that_is_in_use_is_named(models_folder, server):
    port = server.grpc_address.split(":")[1]
    ended = not_serving(models_folder / artifacts.MODEL_REPOSITORY, "--grpc-port", port)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        f"serving: gRPC: expected a free address, got {server.grpc_address}"
    )


def tls_options(folder: Path) -> tuple[str, ...]:
    """Return the server's options for TLS with a new certificate, which is written into a folder."""
    certificate, key = (str(folder / name) for name in ("certificate.pem", "key.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return ("--ssl-certfile", certificate, "--ssl-keyfile", key)


def test_both_protocols_can_use_tls(models_folder, tmp_path):
    options = tls_options(tmp_path)
    _, certificate, *_ = options
    context = ssl.create_default_context(cafile=certificate)
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options, context=context) as running:
        address = running.grpc_address.replace("127.0.0.1", "localhost")
        with InferenceServerClient(address, ssl=True, root_certificates=certificate) as client:
            assert client.is_server_ready()
        body = json.dumps(inference_request(random_images(300))).encode()
        port = int(running.address.split(":")[1])
        connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
        for _ in range(2):
            connection.request("POST", "/v2/models/cnn/infer", body)
            assert json.load(connection.getresponse())["outputs"][0]["shape"] == [300, 1]


def test_clients_that_do_not_start_tls_are_disconnected(models_folder, tmp_path):
    options = tls_options(tmp_path)
    context = ssl.create_default_context(cafile=options[1])
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options, context=context) as running:
        host, port = running.address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as silent:
            assert silent.recv(1) == b""
        running.process.terminate()
        running.process.wait(timeout=30)
        running.log.seek(0)
        assert "Traceback" not in running.log.read()


@pytest.mark.parametrize("options", [("--ssl-certfile", "x"), ("--ssl-certfile", "x", "--ssl-keyfile", "y")])
def test_invalid_tls_files_are_refused(models_folder, options):
    ended = not_serving(models_folder / artifacts.MODEL_REPOSITORY, *options)
    assert ended.returncode in (1, 2)
    assert "expected " in ended.stderr.splitlines()[-1]
