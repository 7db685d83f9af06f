"""Limits on time and memory of gRPC calls."""

import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferenceServerClient, service_pb2

from benchmarks.load_generator import (
    CALL_HEADERS,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    frame,
    header_field,
)
from serving.bodies import Bodies
from serving.errors import RequestError
from serving.limits import MAX_CONCURRENT_BODIES, Limits
from stages import artifacts
from tests.conftest import Server, serving
from tests.test_rpc import change, image_input
from tests.test_serving import random_images

SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture
def limited_server(models_folder) -> Iterator[Server]:
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--timeout", "2") as running:
        yield running


@pytest.fixture
def channel(limited_server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(limited_server.grpc_address) as channel:
        yield channel


def start_call(channel: grpc.Channel, method: str = f"{SERVICE}/ModelInfer") -> grpc.Future:
    """Start a call whose request never comes."""
    call = channel.stream_unary(method, service_pb2.ModelInferRequest.SerializeToString)
    return call.future(iter(threading.Event().wait, True), timeout=60)


def headers_frame(method: str) -> bytes:
    """Return the frame of HTTP/2 that starts a call on stream 1."""
    headers = CALL_HEADERS | {":path": method}
    return frame(HEADERS, END_HEADERS, 1, b"".join(header_field(*field) for field in headers.items()))


@pytest.mark.parametrize("method", [f"{SERVICE}/ModelInfer", f"{SERVICE}/ServerLive", "/grpc.health.v1.Health/Check"])
def test_a_request_that_does_not_come_times_out(channel, method):
    error = start_call(channel, method).exception(timeout=30)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "request: expected to be complete after 2 seconds, got a part"


def test_a_call_without_a_request_is_refused(channel):
    with pytest.raises(grpc.RpcError, match="request: expected a message, got none"):
        channel.stream_unary(f"{SERVICE}/ModelInfer")(iter([]), timeout=30)


def test_the_call_that_has_been_awaited_longest_is_given_up_when_too_many_arrive(models_folder):
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY) as running,
        grpc.insecure_channel(running.grpc_address) as channel,
        InferenceServerClient(running.grpc_address) as client,
    ):
        first = start_call(channel)
        others = [start_call(channel) for _ in range(2 * MAX_CONCURRENT_BODIES)]
        assert len(client.infer("cnn", [image_input(random_images(3))], client_timeout=20).as_numpy("label")) == 3
        error = first.exception(timeout=0)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details().startswith("calls: expected at most 32 that wait for their clients, got more")
        assert not others[-1].done()


def test_idle_streams_last_beyond_the_timeout_and_give_way_to_others(channel):
    started, go_on = threading.Event(), threading.Event()

    def requests() -> Iterator[service_pb2.ModelInferRequest]:
        yield change()
        started.set()
        go_on.wait()
        yield change()

    stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", service_pb2.ModelInferRequest.SerializeToString)
    responses = stream(requests(), timeout=60)
    next(responses)
    [start_call(channel) for _ in range(MAX_CONCURRENT_BODIES - 1)][-1].exception(timeout=30)
    go_on.set()
    next(responses)


def test_messages_that_exceed_the_memory_of_bodies_are_refused():
    bodies = Bodies(Limits(max_body_bytes=10))
    with (
        bodies.held(10 * MAX_CONCURRENT_BODIES),
        pytest.raises(RequestError, match="bodies in memory: expected at most 320 bytes"),
        bodies.held(1),
    ):
        pass
    assert bodies.bytes == 0


def test_a_client_that_does_not_answer_is_disconnected(limited_server):
    host, port = limited_server.grpc_address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + headers_frame(f"{SERVICE}/ModelStreamInfer"))
        assert b"" in iter(partial(connection.recv, 4096), None)


def test_clients_that_watch_the_health_give_way_to_others(channel):
    health = health_pb2_grpc.HealthStub(channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2 * MAX_CONCURRENT_BODIES)]
    assert next(watches[-1]).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError, match="calls: expected at most 32"):
        list(watches[0])


def test_a_client_that_does_not_read_its_health_holds_up_nobody(models_folder):
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY) as running,
        socket.create_connection(("127.0.0.1", int(running.grpc_address.split(":")[1]))) as connection,
        grpc.insecure_channel(running.grpc_address) as channel,
    ):
        start = headers_frame("/grpc.health.v1.Health/Watch")
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        connection.sendall(PREFACE + settings + start + frame(DATA, END_STREAM, 1, bytes(5)))
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        running.process.terminate()
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_client_that_watches_the_health_does_not_delay_the_shutdown(models_folder):
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY) as running,
        grpc.insecure_channel(running.grpc_address) as channel,
    ):
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        running.process.terminate()
        assert running.process.wait(timeout=15) == 0
        with pytest.raises(grpc.RpcError, match="got one that shuts down"):
            list(statuses)
