"""Fixtures: a small data set, folders in which the stages run on it, and the inference server.

Packages that take seconds to import are imported in the fixtures that need them, because the main process of
pytest-xdist reads this file before it starts the others.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from filelock import FileLock
from ruamel.yaml import YAML

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, as the workers of pytest-xdist share the cores

from stages import artifacts, check, idx, params

PROJECT = Path(__file__).parent.parent
BUCKET = "my-bucket"  # as in docs/
CHROMIUM_ARGUMENTS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")

_first_port = 10_000 + 20 * (os.getpid() % 1000)
PORTS = itertools.cycle(range(_first_port, _first_port + 20))  # below those that the system gives to clients
STAGES = ("train", "evaluate", "export", "verify", "quantize", "verify_int8", "card")  # run once for each model

# Parameters for short trainings, with every kind of layer and every part of a recipe.
SMALL = {
    "networks.fnn.hidden": [32, 16],
    "networks.cnn.convolutions": [[4], [8]],
    "networks.cnn.hidden": [16],
    "recipes.default.fnn.epochs": 8,
    "recipes.default.fnn.dropout": 0.1,
    "recipes.default.cnn.epochs": 4,
    "recipes.default.cnn.dropout": 0.2,
    "minimum_accuracy.fnn": 0.5,
    "minimum_accuracy.cnn": 0.5,
    "int8.max_accuracy_drop": 0.05,
}


def edit_params(file: Path, changes: dict[str, Any]) -> None:
    """Set parameters by their dotted keys."""
    yaml = YAML()
    values = yaml.load(file)
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    yaml.dump(values, file)


def remove_param(file: Path, name: str) -> None:
    """Remove the parameter of a dotted key."""
    yaml = YAML()
    values = section = yaml.load(file)
    *sections, key = name.split(".")
    for part in sections:
        section = section[part]
    del section[key]
    yaml.dump(values, file)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 digests of the data files in a folder, as in data.sha256."""
    return {name: artifacts.sha256_digest(folder / name) for name in artifacts.DATA_FILES}


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A function that builds a folder of this name once for all workers of pytest-xdist, and returns it.

    This is the pattern of pytest-xdist's documentation, "Making session-scoped fixtures execute only once".
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build(name: str, fill: Callable[[Path], None]) -> Path:
        folder, partial = shared / name, shared / f"{name}.partial"
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                fill(partial)
                partial.rename(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def small_data(build_once) -> Path:
    """A folder with scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 28 x 28, as IDX files."""

    def fill(folder: Path) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        enlarged = (digits.images * 15.9).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
        images, labels = np.pad(enlarged, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.uint8)
        idx.write_idx(folder / artifacts.TRAIN_IMAGES, images[:1500])
        idx.write_idx(folder / artifacts.TRAIN_LABELS, labels[:1500])
        idx.write_idx(folder / artifacts.TEST_IMAGES, images[1500:])
        idx.write_idx(folder / artifacts.TEST_LABELS, labels[1500:])

    return build_once("small-data", fill)


@pytest.fixture(scope="session")
def small_params(small_data: Path) -> dict[str, Any]:
    """Parameters for short trainings on the small data set."""
    return SMALL | {"data.name": "digits", "data.sources": [str(small_data)], "data.sha256": digests(small_data)}


def write_inputs(folder: Path, small_data: Path, small_params: dict[str, Any]) -> None:
    """Write the small parameters and their data set into a folder."""
    shutil.copy(PROJECT / params.FILE, folder)
    edit_params(folder / params.FILE, small_params)
    shutil.copytree(small_data, folder / artifacts.DATA)


@pytest.fixture(scope="session")
def models_folder(build_once, small_data: Path, small_params: dict[str, Any]) -> Path:
    """A folder with small models: trained, exported and quantized."""

    def fill(folder: Path) -> None:
        from stages import export, quantize, train

        write_inputs(folder, small_data, small_params)
        with contextlib.chdir(folder):
            for model in params.load_params().models:
                train.main(model)
                export.main(model)
                quantize.main(model)

    return build_once("models", fill)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_data: Path, small_params: dict[str, Any]) -> Path:
    """The current folder, with small parameters and their data set, but no models."""
    write_inputs(tmp_path, small_data, small_params)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(workspace: Path, models_folder: Path) -> list[str]:
    """The models that are trained, exported and quantized in the workspace."""
    shutil.copytree(models_folder / artifacts.ROOT, workspace / artifacts.ROOT, dirs_exist_ok=True)
    return params.load_params().models


@pytest.fixture
def change(workspace: Path) -> Callable[[dict[str, Any]], None]:
    """A function that sets parameters of the workspace by their dotted keys."""
    return lambda changes: edit_params(workspace / params.FILE, changes)


def environment() -> dict[str, str]:
    """Return the environment variables with the commands of this Python environment on the PATH."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def call(folder: Path, *command: str) -> str:
    """Run a command that must exit with 0, and return its output."""
    ended = run(folder, *command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def repro(folder: Path, *options: str) -> set[str]:
    """Run `dvc repro` and return the names of the stages that it ran."""
    return set(re.findall(r"Running stage '(.*)':", call(folder, "dvc", "repro", *options)))


def commit(folder: Path) -> None:
    """Commit everything."""
    call(folder, "git", "add", "--all")
    call(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--allow-empty", "-m", "x")


def copy_project(folder: Path) -> None:
    """Copy the project's files into a folder, as git would commit them now, without results."""
    files = call(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for file in filter(None, files):
        if (PROJECT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / file, folder / file)
    shutil.rmtree(folder / artifacts.ROOT, ignore_errors=True)
    (folder / "dvc.lock").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def built(build_once, models_folder: Path, small_params: dict[str, Any]) -> Path:
    """A clone of the project with small parameters and data, reproduced and committed. Copy it before a change.

    The stages run in this process, without the seconds in which each would import PyTorch, and DVC records their
    outputs as it does after `dvc repro`. test_reproduce.py compares them with those of `dvc repro`.
    """

    def fill(folder: Path) -> None:
        from stages import card, evaluate, verify, verify_int8

        copy_project(folder)
        edit_params(folder / params.FILE, small_params)
        call(folder, "git", "init", "--quiet")
        shutil.copytree(models_folder / artifacts.ROOT, folder / artifacts.ROOT)
        with contextlib.chdir(folder):
            check.main()
            for model in params.load_params().models:
                for stage in (evaluate, verify, verify_int8, card):
                    stage.main(model)
        call(folder, "dvc", "commit", "--force")
        commit(folder)

    return build_once("built", fill)


@pytest.fixture
def clone(built: Path, tmp_path: Path) -> Path:
    """A copy of the reproduced clone with its cache."""
    return shutil.copytree(built, tmp_path / "clone", symlinks=True)


@pytest.fixture
def project(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reproduced clone as the current folder."""
    monkeypatch.chdir(clone)
    return clone


@pytest.fixture(scope="module")
def s3_endpoint():
    """The URL of an S3 server on the loopback interface, with an empty bucket that keeps versions."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        yield s3.meta.endpoint_url
    server.stop()


@dataclass
class Server:
    """A running `python -m serving`."""

    process: subprocess.Popen
    address: str  # host:port
    grpc_address: str
    log: TextIO

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
        """Send a request, a POST if there is a body, and return the response's status and body."""
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        """Send a request and return the response's status and its body, parsed as JSON."""
        status, content = self.ask(path, body, **headers)
        return status, json.loads(content)


@contextlib.contextmanager
def serving(
    repository: Path, *options: str, context: ssl.SSLContext | None = None, probe: str = "ready"
) -> Iterator[Server]:
    """Run the server on a model repository and free ports, with TLS if there is a context; kill it at the end.

    A server that ends before it answers the probe fails the test with its output.
    """
    port, grpc_port = free_ports(2)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    command = [sys.executable, "-m", "serving", str(repository), *ports, *options]
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads would block the server once it is full
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
        server = Server(process, f"127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", log)
        try:
            while not is_ready(f"https://localhost:{port}" if context else f"http://{server.address}", context, probe):
                if process.poll() is not None:
                    log.seek(0)
                    pytest.fail(f"the server exited with {process.returncode} before it was ready:\n{log.read()}")
                time.sleep(0.02)
            yield server
        finally:
            process.kill()  # a graceful shutdown, which takes a second, has tests of its own
            process.wait(timeout=30)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface on which nothing listens.

    Each process has ports of its own: else, the tests of another could listen on one before this test's server does.
    """
    return list(itertools.islice(filter(is_free, PORTS), count))


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of the loopback interface."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def create_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a new private and public key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def model_signing(action: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Sign or verify a model's folder with the official command."""
    signature = folder / artifacts.signature("").name
    command = ["model_signing", action, "key", str(folder), "--signature", str(signature), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return create_keys(tmp_path, "key")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true; fail after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_ready(url: str, context: ssl.SSLContext | None = None, probe: str = "ready") -> bool:
    """Return whether a server answers its readiness probe, or the probe `live`."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"{url}/v2/health/{probe}", timeout=30, context=context) as answer,
    ):
        return answer.status == 200
    return False


def not_serving(repository: Path, *options: str) -> subprocess.CompletedProcess:
    """Run a server that is expected to exit before it is ready."""
    command = [sys.executable, "-m", "serving", str(repository), "--port", str(free_ports(1)[0]), *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="session")
def server(models_folder: Path) -> Iterator[Server]:
    """A server of small models."""
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        yield running


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The model repository of the project's own models."""
    if not (PROJECT / artifacts.onnx("cnn")).is_file():
        pytest.skip("needs the pipeline's models; run `make repro` first")
    return PROJECT / artifacts.MODEL_REPOSITORY


@pytest.fixture(scope="session")
def classifiers(shipped: Path) -> list[Any]:
    """The project's own models, loaded as the server does."""
    from serving.models import load_models

    return list(load_models(shipped).values())


@pytest.fixture(scope="session")
def shipped_server(shipped: Path) -> Iterator[Server]:
    """A server of the project's own models."""
    with serving(shipped) as running:
        yield running


@pytest.fixture(scope="session")
def test_set(shipped: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's test images, uint8 [10000, 28, 28], and labels."""
    images, labels = (idx.read_idx(PROJECT / artifacts.DATA / name) for name in artifacts.DATA_FILES[2:])
    return images, labels


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
