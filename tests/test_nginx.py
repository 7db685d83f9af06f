"""nginx in front of the server, with the configuration in deploy/."""

import json
import queue
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.conftest import PROJECT, Server, free_ports, wait_until
from tests.test_connection import UPGRADE, connect, infer_request, receive_all, statuses
from tests.test_rpc import image_input
from tests.test_serving import infer, inference_request, random_images


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The addresses of nginx, which passes requests on to the server."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if not nginx:
        pytest.skip("needs nginx: `apt-get install nginx`")
    folder: Path = tmp_path_factory.mktemp("nginx")
    ports = free_ports(2)
    config = (PROJECT / "deploy" / "nginx.conf").read_text()
    for port, address in zip((8000, 8001), (server.address, server.grpc_address)):
        config = config.replace(f"127.0.0.1:{port}", address)
    for port, free in zip((8080, 8081), ports):
        config = config.replace(f"listen {port}", f"listen 127.0.0.1:{free}")
    (folder / "nginx.conf").write_text(config)
    directives = f"daemon off; pid {folder}/pid; error_log {folder}/error.log;"
    command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    process = subprocess.Popen([*command, "-g", directives], stderr=subprocess.PIPE)
    running = Server(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", None)
    try:
        wait_until(lambda: process.poll() is not None or is_listening(ports[0]))
        assert process.poll() is None, process.stderr.read().decode()
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_inference_requests_pass_through_nginx(proxy):
    for size in (1, 1000):
        status, answer = infer(proxy, inference_request(random_images(size)))
        assert (status, answer["outputs"][0]["shape"]) == (200, [size, 1])


def test_grpc_passes_through_nginx(proxy):
    with tritonclient.grpc.InferenceServerClient(proxy.grpc_address) as client:
        assert client.is_server_ready()
        assert client.infer("cnn", [image_input(random_images(7))]).as_numpy("label").shape == (7, 1)
        with pytest.raises(InferenceServerException):
            client.load_model("cnn")


def test_a_long_stream_passes_through_nginx(proxy):
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(proxy.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error))
        for _ in range(12):  # of 0.8 MB each
            client.async_stream_infer("cnn", [image_input(random_images(1000))])
        assert [answers.get(timeout=30) for _ in range(12)] == 12 * [None]


@pytest.mark.parametrize("path", ["/metrics", "/v2/repository/index", "/v2/repository/models/cnn/unload"])
def test_nginx_hides_metrics_and_model_control(proxy, path):
    assert proxy.ask(path, b"{}")[0] == 404


def test_nginx_refuses_large_bodies(proxy):
    assert proxy.ask("/v2/models/cnn/infer", bytes(9 * 2**20))[0] == 413


def test_an_offer_to_upgrade_does_not_reach_the_server(proxy):
    with connect(proxy) as connection:
        connection.sendall(infer_request(UPGRADE, b"Connection: close\r\n"))
        answer = receive_all(connection)
    assert statuses(answer) == [200]
    assert "outputs" in json.loads(answer.partition(b"\r\n\r\n")[2])
