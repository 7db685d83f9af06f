"""The server under generated requests: `FUZZ=10000 pytest tests/test_fuzz.py` generates that many per test."""

import json
import os
import socket

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.conftest import PROJECT, Server
from tests.test_digits import SEVENS
from tests.test_serving import inference_request, random_images

DEFAULT_EXAMPLES = 25  # in `make test`, always the same ones
EXAMPLES = int(os.environ.get("FUZZ", DEFAULT_EXAMPLES))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == DEFAULT_EXAMPLES,
    suppress_health_check=list(HealthCheck),
    database=None,
)
if EXAMPLES > DEFAULT_EXAMPLES:
    pytestmark = pytest.mark.timeout(0)  # the project's limit per test is for the default number of examples
schema = schemathesis.openapi.from_path(PROJECT / "tests" / "openapi.yaml")
PICTURES = {kind: SEVENS[kind]() for kind in ("dark on light", "JPEG", "WebP")}


@pytest.fixture(autouse=True)
def server_still_works(server: Server):
    """After each test, the same process answers a valid request."""
    yield
    body = json.dumps(inference_request(random_images(3))).encode()
    status, answer = server.json("/v2/models/cnn/infer", body)
    assert (status, answer["outputs"][0]["shape"]) == (200, [3, 1])
    assert server.process.poll() is None


# The schema cannot express all rules, such as the number of values, so valid data in its terms may be refused.
EXCLUDED_CHECKS = [positive_data_acceptance]


# Parametrized, because otherwise all of Schemathesis's operations have one test id in pytest 9.2, and pytest-xdist runs
# only one test per id.
@schema.parametrize()
@pytest.mark.parametrize("excluded_checks", [EXCLUDED_CHECKS], ids=["all checks"])
@fuzz
def test_every_operation_conforms_to_its_schema(case, server, excluded_checks):
    case.call_and_validate(base_url=f"http://{server.address}", excluded_checks=excluded_checks)


def test_every_collected_test_has_its_own_id(request):
    ids = [item.nodeid for item in request.session.items]
    assert len(set(ids)) == len(ids)


LENGTHS = st.integers(-5, 2000) | st.integers()
INPUT_FIELDS = {
    "name": st.just("image") | st.text(),
    "datatype": st.just("UINT8") | st.sampled_from(["FP32", "BYTES", "BOOL"]),
    "shape": st.just([1, 1, 28, 28]) | st.lists(st.integers(-1, 3) | st.integers(), max_size=5),
    "parameters": st.fixed_dictionaries({"binary_data_size": st.just(784) | LENGTHS}),
}


@fuzz
@given(
    inputs=st.lists(st.fixed_dictionaries(INPUT_FIELDS), max_size=3),
    binary=st.binary(max_size=2000) | st.integers(780, 790).map(bytes),
    length=st.none() | LENGTHS,
)
def test_binary_tensor_data_are_accepted_or_refused(server, inputs, binary, length):
    head = json.dumps({"inputs": inputs}).encode()
    header = str(len(head) if length is None else length)
    status, content = server.ask("/v2/models/cnn/infer", head + binary, **{"Inference-Header-Content-Length": header})
    assert status in (200, 400)
    if status == 400:
        assert json.loads(content)["error"]


@fuzz
@given(st.binary(max_size=2000), st.booleans())
def test_arbitrary_bytes_cause_no_server_error(server, content, with_request_line):
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v2/models/cnn/infer HTTP/1.1\r\nHost: localhost\r\n" * with_request_line + content)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer.startswith(b"HTTP/1.1 5")


@fuzz
@given(st.sampled_from(sorted(PICTURES)), st.data())
def test_corrupt_pictures_are_accepted_or_refused(server, kind, data):
    picture = bytearray(PICTURES[kind])
    for position in data.draw(st.lists(st.integers(0, len(picture) - 1), min_size=1, max_size=20)):
        picture[position] = data.draw(st.integers(0, 255))
    status, _ = server.ask("/digits", bytes(picture[: data.draw(st.integers(0, len(picture)))]))
    assert status in (200, 413, 415, 422)
