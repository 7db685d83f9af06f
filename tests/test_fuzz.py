"""The server under requests that a fuzzer makes up: `FUZZ=10000 pytest tests/test_fuzz.py` makes as many a test."""

import json
import os
import socket

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error, response_schema_conformance

from tests.conftest import PROJECT, Server
from tests.test_digits import SEVENS
from tests.test_serving import images, message

CASES = int(os.environ.get("FUZZ", "25"))
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=CASES == 25,
    suppress_health_check=list(HealthCheck),
    database=None,
)
schema = schemathesis.openapi.from_path(PROJECT / "tests" / "openapi.yaml")


@pytest.fixture(autouse=True)
def unharmed(server: Server):
    """Whatever is sent, others are answered correctly, by the same process."""
    yield
    status, answer = server.json("/v2/models/cnn/infer", json.dumps(message(images(3))).encode())
    assert status == 200
    assert server.process.poll() is None


@schema.parametrize()
@fuzz
def test_the_protocol(case, server):
    case.call_and_validate(
        base_url=f"http://{server.address}", checks=[not_a_server_error, response_schema_conformance]
    )


LENGTHS = st.integers(-5, 2000) | st.integers()
PARTS = {
    "name": st.just("image") | st.text(),
    "datatype": st.just("UINT8") | st.sampled_from(["FP32", "BYTES", "BOOL"]),
    "shape": st.just([1, 1, 28, 28]) | st.lists(st.integers(-1, 3) | st.integers(), max_size=5),
    "parameters": st.fixed_dictionaries({"binary_data_size": st.just(784) | LENGTHS}),
}


@fuzz
@given(
    inputs=st.lists(st.fixed_dictionaries(PARTS), max_size=3),
    tail=st.binary(max_size=2000) | st.integers(780, 790).map(bytes),
    length=st.none() | LENGTHS,
)
def test_the_binary_extension(server, inputs, tail, length):
    head = json.dumps({"inputs": inputs}).encode()
    header = str(len(head) if length is None else length)
    status, content = server.ask("/v2/models/cnn/infer", head + tail, **{"Inference-Header-Content-Length": header})
    assert status in (200, 400)
    if status == 400:
        assert json.loads(content)["error"]


@fuzz
@given(st.binary(max_size=2000), st.booleans())
def test_bytes_that_are_no_request(server, content, well_begun):
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v2/models/cnn/infer HTTP/1.1\r\n" * well_begun + content)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer.startswith(b"HTTP/1.1 5")


@fuzz
@given(st.sampled_from(["dark on light", "JPEG", "WebP"]), st.data())
def test_pictures_with_changed_bytes(server, kind, data):
    picture = bytearray(PICTURES[kind])
    for place in data.draw(st.lists(st.integers(0, len(picture) - 1), min_size=1, max_size=20)):
        picture[place] = data.draw(st.integers(0, 255))
    status, _ = server.ask("/digits", bytes(picture[: data.draw(st.integers(0, len(picture)))]))
    assert status in (200, 413, 415, 422)


PICTURES = {kind: SEVENS[kind]() for kind in ("dark on light", "JPEG", "WebP")}
