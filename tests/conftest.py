"""A small data set of real digits, and a folder in which the stages run on it."""

import contextlib
import json
import os
import re
import shutil
import socket
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
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch comes: the tests' processes share the cores

from stages import artifacts, export, idx, params, quantize, train

PROJECT = Path(__file__).parent.parent

STAGES = ("train", "evaluate", "export", "verify", "quantize", "verify_int8", "card")  # of each model

# small and quick, but with every kind of layer and every part of a recipe
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
    "int8.accuracy_loss": 0.05,
}


def edit_params(file: Path, changes: dict[str, Any]) -> None:
    """Set parameters by their dotted names."""
    yaml = YAML()
    values = yaml.load(file)
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    yaml.dump(values, file)


def digests(folder: Path) -> dict[str, str]:
    """The data set's digests as params.yaml holds them, of the files in a folder."""
    return {name: artifacts.sha256(folder / name) for name in artifacts.DATA_FILES}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 28 x 28, as IDX files."""
    directory = tmp_path_factory.mktemp("small-data")
    digits = load_digits()
    images = np.pad(
        (digits.images * 15.9).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2))
    )
    labels = digits.target.astype(np.uint8)
    idx.write(directory / artifacts.TRAIN_IMAGES, images[:1500])
    idx.write(directory / artifacts.TRAIN_LABELS, labels[:1500])
    idx.write(directory / artifacts.TEST_IMAGES, images[1500:])
    idx.write(directory / artifacts.TEST_LABELS, labels[1500:])
    return directory


@pytest.fixture(scope="session")
def small_params(small_data: Path) -> dict[str, Any]:
    """The parameters that make the pipeline small."""
    return SMALL | {"data.name": "digits", "data.sources": [str(small_data)], "data.sha256": digests(small_data)}


def furnish(folder: Path, small_data: Path, small_params: dict[str, Any]) -> None:
    """Put small parameters and their data into a folder."""
    shutil.copy(PROJECT / params.FILE, folder)
    edit_params(folder / params.FILE, small_params)
    shutil.copytree(small_data, folder / artifacts.DATA)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_params: dict[str, Any]) -> Path:
    """A folder with small models, trained, exported and quantized once for all tests."""
    folder = tmp_path_factory.mktemp("models")
    furnish(folder, small_data, small_params)
    with contextlib.chdir(folder):
        for model in params.load().models:
            train.main(model)
            export.main(model)
            quantize.main(model)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_data: Path, small_params: dict[str, Any]) -> Path:
    """A current folder with small parameters and their data, but no models."""
    furnish(tmp_path, small_data, small_params)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(workspace: Path, models_folder: Path) -> list[str]:
    """The models that the workspace now has, trained, exported and quantized."""
    shutil.copytree(models_folder / artifacts.ROOT, workspace / artifacts.ROOT, dirs_exist_ok=True)
    return params.load().models


@pytest.fixture
def change(workspace: Path) -> Callable[[dict[str, Any]], None]:
    """Set parameters of the workspace by their dotted names."""
    return lambda changes: edit_params(workspace / params.FILE, changes)


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def call(folder: Path, *command: str) -> str:
    """Run a command that has to succeed, and return what it prints."""
    ended = run(folder, *command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def repro(folder: Path, *options: str) -> set[str]:
    """Run `dvc repro` and return the names of the stages that ran."""
    return set(re.findall(r"Running stage '(.*)':", call(folder, "dvc", "repro", *options)))


def commit(folder: Path) -> None:
    call(folder, "git", "add", "--all")
    call(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--allow-empty", "-m", "x")


@pytest.fixture(scope="session")
def built(tmp_path_factory, small_params) -> Path:
    """A clone of the project with small parameters and data, reproduced and committed."""
    folder = tmp_path_factory.mktemp("clone")
    files = run(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").stdout.split("\0")
    for file in filter(None, files):
        if (PROJECT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / file, folder / file)
    shutil.rmtree(folder / artifacts.ROOT, ignore_errors=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    edit_params(folder / "params.yaml", small_params)
    run(folder, "git", "init", "--quiet")
    commit(folder)
    assert repro(folder) == {"check", "download"} | {f"{stage}@{model}" for stage in STAGES for model in ("fnn", "cnn")}
    commit(folder)
    return folder


@pytest.fixture
def clone(built, tmp_path) -> Path:
    """A copy of the reproduced clone, with its cache, to change at will."""
    return shutil.copytree(built, tmp_path / "clone")


@dataclass
class Server:
    """A running `python -m serving`."""

    process: subprocess.Popen
    address: str  # host:port
    log: TextIO

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
        """Send one request, a POST if there is a body, and return status and body of the answer."""
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        status, content = self.ask(path, body, **headers)
        return status, json.loads(content)


@contextlib.contextmanager
def serving(repository: Path, *options: str) -> Iterator[Server]:
    """Run the server on these models, on a free port, and stop it again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serving", str(repository), "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as log:  # a pipe would be full some day
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
        server = Server(process, f"127.0.0.1:{port}", log)
        try:
            while process.poll() is None:
                with contextlib.suppress(urllib.error.URLError):
                    if server.ask("/v2/health/ready")[0] == 200:
                        break
                time.sleep(0.02)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def not_serving(repository: Path, *options: str) -> subprocess.CompletedProcess:
    """Run a server that is expected not to start."""
    command = [sys.executable, "-m", "serving", str(repository), "--port", "1", *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="session")
def server(models_folder: Path) -> Iterator[Server]:
    """A server of small models."""
    with serving(models_folder / artifacts.MODEL_REPOSITORY) as running:
        yield running


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The project's own models, as the pipeline made them."""
    if not (PROJECT / artifacts.onnx("cnn")).is_file():
        pytest.skip("needs the pipeline's models: `make repro` first")
    return PROJECT / artifacts.MODEL_REPOSITORY


@pytest.fixture(scope="session")
def shipped_server(shipped: Path) -> Iterator[Server]:
    """A server of the project's own models."""
    with serving(shipped) as running:
        yield running


@pytest.fixture(scope="session")
def test_set(shipped: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's test images, uint8 [10000, 28, 28], and labels."""
    images, labels = (idx.read(PROJECT / artifacts.DATA / name) for name in artifacts.DATA_FILES[2:])
    return images, labels
