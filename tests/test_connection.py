"""The server's TCP connections, attacked over raw sockets: framing, limits, timeouts and graceful shutdown."""

import contextlib
import http.client
import io
import itertools
import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
import psutil
import pytest
from PIL import Image

from serving.connection import NEW_SECONDS, REUSED_SECONDS
from serving.limits import LINGER_SECONDS
from stages import artifacts
from tests.conftest import PROJECT, Server, free_ports, serving, wait_until
from tests.foreign_models import save_model
from tests.test_serving import binary_request, infer, inference_request, random_images, run_onnx

CONNECTIONS = 8
HOST = b"Host: localhost\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


def connect(server: Server) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def receive_all(connection: socket.socket) -> bytes:
    """Return everything that is received until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def exchange(server: Server, *parts: bytes, end: bool = False) -> bytes:
    """Send parts, each in a segment of its own; return everything that is received until the server closes.

    With `end`, close the sending side.
    """
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
            time.sleep(0.1 * (len(parts) > 1))
        if end:
            connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """Return a request whose headers, besides Host and Content-Length, are these lines."""
    return (
        f"POST {path} HTTP/1.1\r\n".encode()
        + HOST
        + b"Content-Length: %d\r\n" % len(body)
        + b"".join(headers)
        + b"\r\n"
        + body
    )


def infer_request(*headers: bytes) -> bytes:
    return post("/v2/models/cnn/infer", json.dumps(inference_request(random_images(1))).encode(), *headers)


@pytest.fixture(scope="module")
def limited_server(models_folder) -> Iterator[Server]:
    """A server with low limits."""
    limits = ("--max-body", "2000", "--max-connections", str(CONNECTIONS), "--timeout", "1")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *limits) as running:
        yield running


# Framing


@pytest.mark.parametrize("split", range(1, 8))
def test_an_offer_to_upgrade_is_ignored_wherever_the_request_is_split(server, split):
    """Java's HTTP client makes this offer with its first request."""
    request = infer_request(UPGRADE)
    position = request.index(b"Upgrade: h2c") + split
    assert statuses(exchange(server, request[:position], request[position:])) == [200]


def test_the_body_of_an_upgrade_offer_is_never_taken_for_a_request(server):
    smuggled = b"GET /v2/models/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    first = b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n"
    head, separator, _ = post("/v2/models/cnn/infer", smuggled, UPGRADE).partition(b"\r\n\r\n")
    for parts in (
        [first + head + separator, smuggled],
        [first + head + separator + smuggled],
        [head + separator, smuggled],
    ):
        answer = exchange(server, *parts)
        assert statuses(answer) in ([200, 400], [400])
        assert b"smuggled" not in answer


def test_a_tensor_that_contains_header_lines_arrives_unchanged(server, models_folder):
    image = np.frombuffer(b"\r\nupgrade: h2c\r\nUpgrade: websocket".ljust(784, b"\n"), np.uint8).reshape(1, 1, 28, 28)
    tensor = {"name": "image", "shape": image.shape, "datatype": "UINT8", "parameters": {"binary_data_size": 784}}
    body, headers = binary_request({"inputs": [tensor]}, image.tobytes())
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    request = post("/v2/models/cnn/infer", body, *lines, b"Connection: close\r\n")
    position = request.index(b"\r\n\r\n") + 2
    answer = exchange(server, request[:position], request[position:])
    probabilities = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][1]["data"]
    np.testing.assert_allclose(probabilities, run_onnx(models_folder, "cnn", image)[1][0], atol=1e-6)


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"Host: a\r\nHost: localhost\r\n",
        HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n",
        HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Content-Length: -1\r\n",
        HOST + b"Content-Length: 1_0\r\n",
        HOST + b"Transfer-Encoding: chunked, identity\r\n",
        HOST + b"A : b\r\n",
        HOST + b"A: b\r\n continued: c\r\n",
        HOST + b"A: \0\r\n",
    ],
)
def test_a_request_with_ambiguous_or_missing_headers_is_refused_and_the_connection_closed(server, headers):
    assert statuses(exchange(server, b"POST /digits HTTP/1.1\r\n" + headers + b"\r\nabc")) == [400]


def test_data_that_are_not_http_are_refused(server):
    assert statuses(exchange(server, b"hello\r\n\r\n")) == [400]


def test_invalid_pipelined_data_do_not_change_the_response_before_them(server):
    answer = exchange(server, infer_request() + b"\0\0\r\n\r\n", end=True)
    assert statuses(answer)[:1] in ([200], [400])
    assert answer.count(b"model_name") <= 1


def test_pipelined_requests_are_answered_in_order(server):
    requests = [f"GET /v2/models/{name} HTTP/1.1\r\n".encode() + HOST + b"\r\n" for name in ("cnn", "fnn") * 20]
    answer = exchange(server, b"".join(requests), end=True)
    assert re.findall(rb'"name":"([cf]nn)"', answer) == [b"cnn", b"fnn"] * 20


def test_a_client_that_closes_its_sending_side_gets_an_answer(server):
    assert statuses(exchange(server, infer_request(), end=True)) == [200]
    assert statuses(exchange(server, b"GET /v2 HT", end=True)) == [400]


# Limits


def test_a_body_above_the_limit_is_refused(limited_server):
    status, answer = infer(limited_server, inference_request(random_images(1)))
    assert (status, answer["error"]) == (413, "body: expected at most 2000 bytes, got more")


def test_a_chunked_body_above_the_limit_is_refused(limited_server):
    head = b"POST /digits HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"3e8\r\n" + b"0" * 1000 + b"\r\n3e9\r\n" + b"0" * 1001 + b"\r\n0\r\n\r\n"
    assert statuses(exchange(limited_server, head + chunks, end=True)) == [413]


@pytest.mark.parametrize("path", ["/v2/models/cnn/infer", "/unknown"])
def test_a_refused_request_gets_one_response(limited_server, path):
    with connect(limited_server) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n".encode() + HOST + b"Content-Length: 100000\r\n\r\n")
        answer = connection.recv(65536)  # possibly only its beginning
        connection.sendall(b" " * 60_000)
        with contextlib.suppress(ConnectionResetError):
            answer += receive_all(connection)
    assert [status // 100 for status in statuses(answer)] == [4]


def test_a_connection_stays_open_after_a_body_that_nobody_reads(server):
    """As long as it is small: a large one closes the connection, which the response says."""
    last = b"GET /v2 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    # At once, unless the server waits long for a CPU.
    wait_until(lambda: statuses(exchange(server, post("/unknown", bytes(50_000)) + last)) == [404, 200])
    answer = exchange(server, post("/unknown", bytes(5_000_000)) + last)
    assert statuses(answer) == [404]
    assert b"connection: close" in answer


@pytest.mark.parametrize("start", [b"", b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n"])
@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", b"X-Long: " + b"x" * 200_000])
def test_headers_above_the_limit_are_refused(server, start, header):
    answer = exchange(server, start + b"GET /v2 HTTP/1.1\r\n" + HOST + header)
    assert statuses(answer)[-1] == 431
    assert b"headers: expected at most 16384 bytes, got more" in answer


def test_endless_headers_and_trailers_are_limited(limited_server):
    for start in (
        b"GET /v2 HTTP/1.1\r\n",
        b"POST /digits HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    ):
        with connect(limited_server) as connection:
            connection.sendall(start)
            with pytest.raises(ConnectionError):
                for number in itertools.count():
                    connection.sendall(b"A%d: b\r\n" % number * 100)


def test_the_slowest_upload_is_given_up_when_bodies_exceed_their_memory(models_folder):
    """32 clients who stall before the last byte hold all of it."""
    with (
        serving(models_folder / artifacts.MODEL_REPOSITORY, "--max-body", "10000") as server,
        contextlib.ExitStack() as stack,
    ):
        stalled = [stack.enter_context(connect(server)) for _ in range(32)]
        for connection in stalled:
            connection.sendall(post("/digits", bytes(10_000))[:-1])
        while server_bytes(server) < 32 * 9_999:
            time.sleep(0.05)
        assert infer(server, inference_request(random_images(1)))[0] == 200
        (refused, *_), *_ = select.select(stalled, [], [], 30)
        assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
        stack.close()


def server_bytes(server: Server) -> float:
    """Return the bytes of all bodies that the server holds."""
    return next(
        float(line.split()[1])
        for line in server.ask("/metrics")[1].decode().splitlines()
        if line.startswith("serving_body_bytes ")
    )


def test_memory_is_within_the_accounted_one(models_folder):
    """A body lies in memory once."""
    size, count = 8 * 2**20, 31
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as server, contextlib.ExitStack() as stack:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        for _ in range(count):
            connection = stack.enter_context(connect(server))
            connection.sendall(post("/digits", bytes(size))[:-1])
        while server_bytes(server) < count * (size - 1):
            time.sleep(0.05)
        assert process.memory_info().rss - before < 1.3 * count * size
        stack.close()


def test_many_json_keys_are_refused_before_they_are_parsed(server):
    body = b'{"inputs": [], ' + b",".join(b'"k%d":0' % number for number in range(400_000)) + b"}"
    status, answer = server.json("/v2/models/cnn/infer", body)
    assert status == 400
    assert "request: expected at most 20,000 arrays, objects and keys, got 400,003" in answer["error"]


@pytest.mark.parametrize("path", [b"/v2/models/stats", b"/page.js"])
def test_clients_who_never_read_give_way_to_others(models_folder, path):
    requests = 313 * (b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    options = ("--max-connections", "8", "--timeout", "1")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options) as server, contextlib.ExitStack() as stack:
        for _ in range(16):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(server.address.split(":")[1])))
            connection.sendall(requests)
        wait_until(lambda: server.ask("/v2")[0] == 200)
        wait_until(lambda: open_connections(server) <= 1)


@pytest.mark.parametrize(("header", "half_close"), [(b"Connection: close\r\n", False), (b"", True)])
def test_a_slow_client_gets_the_whole_of_a_large_response_before_the_connection_closes(tmp_path, header, half_close):
    save_model(tmp_path / "m" / "1" / "model.onnx", "Identity", "x", ["batch", "n"], config="max_batch_size: 1")
    values = np.linspace(0, 1, 1_500_000, dtype=np.float32)
    x = {"name": "x", "shape": [1, values.size], "datatype": "FP32", "parameters": {"binary_data_size": values.nbytes}}
    body, headers = binary_request({"inputs": [x]}, values.tobytes())
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    with serving(tmp_path) as running, connect(running) as connection:
        connection.sendall(post("/v2/models/m/infer", body, *lines, header))
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        first = connection.recv(65536)
        time.sleep(2 * LINGER_SECONDS)
        answer = first + receive_all(connection)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert f"content-length: {len(content)}".encode() in head.lower()
    assert len(content) > 12_000_000  # more than the kernel buffers


def open_connections(server: Server) -> int:
    """Return the number of HTTP connections that the server process has open."""
    port = int(server.address.split(":")[1])
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in connections)


def test_idle_connections_give_way_to_new_ones(limited_server):
    idle = [connect(limited_server) for _ in range(CONNECTIONS)]
    time.sleep(NEW_SECONDS + 0.2)  # the server accepts a connection a little later than the client
    assert limited_server.ask("/v2")[0] == 200
    for connection in idle:
        connection.close()


def test_a_connection_that_was_answered_gives_way_soon(limited_server):
    with contextlib.ExitStack() as stack:
        for _ in range(3 * CONNECTIONS):
            connection = stack.enter_context(connect(limited_server))
            connection.sendall(b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n")
            assert statuses(connection.recv(65536)) == [200]
            time.sleep(REUSED_SECONDS)


def test_no_request_is_lost_when_more_connections_arrive_than_are_allowed(limited_server):
    request = b"GET /v2 HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
    with ThreadPoolExecutor(4 * CONNECTIONS) as pool:
        answers = [*pool.map(lambda _: exchange(limited_server, request), range(400))]
    assert {tuple(statuses(answer)) for answer in answers} == {(200,), (503,)}


def test_connections_above_the_limit_are_refused_while_all_are_in_use(limited_server):
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(limited_server)).sendall(post("/digits", bytes(100))[:-1])
        time.sleep(0.3)  # until the server has received them
        answer = exchange(limited_server)
    assert statuses(answer) == [503]
    assert b"connections: expected at most %d, got more; try again later" % CONNECTIONS in answer
    while limited_server.ask("/v2")[0] != 200:
        time.sleep(0.1)


# Timeouts


@pytest.mark.parametrize("part", [b"G", b"GET /v2 HTTP/1.1\r\nA: b\r\n", post("/digits", bytes(9))[:-1]])
def test_an_incomplete_request_times_out(limited_server, part):
    answer = exchange(limited_server, part)
    assert statuses(answer) == [408]
    assert b"request: expected to be complete after 1 seconds, got a part" in answer


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [post("/unknown", b"ab")[:-2], b"ab"],  # answered before the body arrives
        [b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n" + post("/digits", b"ab")[:-1]],
        [b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n"],
        [b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /v2 HTTP/1.1\r\n"],
    ],
)
def test_an_idle_connection_is_closed_after_the_timeout(limited_server, parts):
    with contextlib.suppress(ConnectionResetError):
        exchange(limited_server, *parts)


def test_a_picture_is_not_decoded_after_the_client_has_reset_the_connection(models_folder):
    picture = io.BytesIO()
    Image.new("L", (4000, 4000)).save(picture, "PNG")
    content = picture.getvalue()
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--workers", "1") as server:
        for _ in range(20):
            with connect(server) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset when closed
                connection.sendall(post("/digits", content))
                time.sleep(0.01)
        assert server.ask("/digits", content)[0] == 422
        lines = server.ask("/metrics")[1].decode().splitlines()
    (decoded,) = (line for line in lines if line.startswith("serving_digit_seconds_count"))
    assert float(decoded.split()[1]) < 10
    assert 'serving_requests_total{endpoint="read_digits",model="",status="499"}' in "\n".join(lines)


def test_an_inference_request_waits_for_one_picture_at_most(models_folder):
    picture = io.BytesIO()
    Image.new("L", (4000, 4000)).save(picture, "PNG")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, "--workers", "1") as server, ThreadPoolExecutor(8) as pool:
        pictures = [pool.submit(server.ask, "/digits", picture.getvalue()) for _ in range(8)]
        wait(pictures, return_when=FIRST_COMPLETED)
        assert infer(server, inference_request(random_images(100)))[0] == 200
        assert sum(each.done() for each in pictures) < 5
    assert [each.result()[0] for each in pictures] == 8 * [422]  # the picture is empty


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_shuts_down_gracefully(models_folder, number):
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as server:
        body = json.dumps(inference_request(random_images(2))).encode()
        host, port = server.address.split(":")
        accepted = http.client.HTTPConnection(host, int(port), timeout=30)
        accepted.putrequest("POST", "/v2/models/cnn/infer")
        accepted.putheader("Content-Length", str(len(body)))
        accepted.endheaders(body[:-1])
        idle = connect(server)
        server.ask("/v2")  # when this is answered, the server has received the request before it, too
        server.process.send_signal(number)
        server.process.send_signal(number)  # changes nothing
        assert idle.recv(1) == b""
        idle.close()
        with pytest.raises(ConnectionError):
            while True:
                connect(server).close()
        assert server.process.poll() is None
        accepted.send(body[-1:])
        answer = accepted.getresponse()
        assert (answer.status, answer.read().count(b'"name"')) == (200, 2)
        accepted.close()
        assert server.process.wait(timeout=30) == 0


def test_requests_that_were_sent_before_sigterm_are_answered(models_folder):
    """On fresh connections, under load, up to the moment of the signal."""
    lost: list[Exception] = []
    answered: list[int] = []
    signalled = threading.Event()

    def send_requests() -> None:
        while not signalled.is_set():
            with connect(server) as connection:
                connection.sendall(infer_request(b"Connection: close\r\n"))
                sent_before = not signalled.is_set()
                try:
                    answered.extend(statuses(receive_all(connection)))
                except OSError as error:
                    if sent_before:
                        lost.append(error)

    with serving(models_folder / artifacts.MODEL_REPOSITORY) as server, ThreadPoolExecutor(16) as pool:
        threads = [pool.submit(send_requests) for _ in range(16)]
        time.sleep(1)
        signalled.set()
        server.process.send_signal(signal.SIGTERM)
        wait(threads)
        assert server.process.wait(timeout=30) == 0
    assert lost == []
    assert set(answered) == {200}


def test_a_log_whose_reader_has_ended_breaks_no_request(models_folder):
    port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "serving", str(models_folder / artifacts.MODEL_REPOSITORY), "--log-requests"]
    command += ["--port", str(port), "--grpc-port", str(grpc_port)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        process.stdout.close()
        server = Server(process, f"127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", io.StringIO())
        while process.poll() is None:
            with contextlib.suppress(OSError):
                assert [server.ask("/v2")[0] for _ in range(3)] == 3 * [200]
                break
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_garbage_behind_pipelined_requests_leaves_no_connection(models_folder):
    garbage = 2 * (b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n") + b"garbage\r\n\r\n"
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        assert 400 in statuses(exchange(running, garbage))
        running.process.terminate()
        assert running.process.wait(timeout=15) == 0
        running.log.seek(0)
        assert "Traceback" not in running.log.read()


# Hosts and origins


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example", 400)],
)
def test_a_loopback_server_refuses_other_hosts_against_dns_rebinding(server, host, status):
    assert server.ask("/v2", Host=host)[0] == status


def test_allowed_hosts_and_origins_can_be_set(models_folder):
    options = (
        "--allowed-host",
        "127.0.0.1",
        "--allowed-host",
        "Models.Example",
        "--allow-origin",
        "https://page.example",
    )
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options) as running:
        for host, status in {"models.example": 200, "localhost": 400}.items():
            assert running.ask("/v2", Host=host)[0] == status
        for origin, allowed in {"https://page.example": "https://page.example", "https://other.example": None}.items():
            client = http.client.HTTPConnection(running.address, timeout=30)
            client.request("GET", "/v2", headers={"Host": "models.example", "Origin": origin})
            assert client.getresponse().getheader("Access-Control-Allow-Origin") == allowed
            status = running.ask("/v2/repository/index", b"", Host="models.example", Origin=origin)[0]
            assert status == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:1", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://page.example", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy has changed the Host
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_a_page_of_another_site_cannot_change_anything(server, headers, status):
    assert server.ask("/v2/repository/index", b"{}", Host="localhost", **headers)[0] == status
    assert server.ask("/v2", Host="localhost", **headers)[0] == 200


def test_a_connection_takes_any_number_of_preflight_requests(models_folder):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST", "Connection": "keep-alive"}
    options = ("--allow-origin", "https://page.example")
    with serving(models_folder / artifacts.MODEL_REPOSITORY, *options) as running:
        client = http.client.HTTPConnection(running.address, timeout=30)
        client.connect()
        connection = client.sock
        for host, status in 300 * [("localhost", 200)] + [("evil.example", 400)]:
            client.request("OPTIONS", "/digits", headers=headers | {"Host": host})
            response = client.getresponse()
            response.read()
            assert (response.status, client.sock) == (status, connection if status == 200 else None)


def test_no_origin_is_allowed_by_default(server):
    client = http.client.HTTPConnection(server.address, timeout=30)
    client.request("GET", "/v2", headers={"Origin": "https://page.example"})
    assert client.getresponse().getheader("Access-Control-Allow-Origin") is None
