import json
import os
import shutil
from collections.abc import Callable

import pytest

from checks import integrity, lock
from stages import artifacts
from stages.errors import UserError
from tests.conftest import call, serving

DAMAGED = "expected the recorded digest, got another: the file is corrupt"


def flip_a_bit(path) -> None:
    """Change the content, but neither the size nor the modification time, by which DVC detects changes."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


@pytest.fixture
def damaged(clone, monkeypatch, capsys) -> Callable[[], list[str]]:
    """A function that returns the lines of checks.integrity about damaged files of the clone, the current folder."""
    monkeypatch.chdir(clone)

    def check() -> list[str]:
        with pytest.raises(SystemExit) as ended:
            integrity.main()
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == bool(lines)
        if lines:
            assert lines.pop().startswith("remove these files; then `dvc checkout` restores outputs, ")
        return lines

    return check


@pytest.mark.parametrize("path", [artifacts.onnx("cnn_int8"), artifacts.evaluation("fnn")])
def test_a_damaged_output_is_found_until_it_is_restored(clone, damaged, path):
    flip_a_bit(clone / path)
    assert damaged() == [f"{path}: {DAMAGED}"]
    (clone / path).unlink()
    assert damaged() == []  # a missing output is not a damaged one
    restore = ["dvc", "checkout"] if path.suffix == ".onnx" else ["git", "restore"]
    call(clone, *restore, str(path))
    assert (clone / path).exists()
    assert damaged() == []


def test_a_damaged_file_in_a_directory_is_found(clone, damaged):
    folder = artifacts.training("cnn")
    flip_a_bit(clone / folder / "plots" / "metrics" / "loss.tsv")
    assert damaged() == [f"{folder}: {DAMAGED}"]


def test_a_damaged_file_in_the_cache_is_found(clone, damaged):
    file = sorted((clone / ".dvc" / "cache" / "files" / "md5").glob("??/*"))[0]
    flip_a_bit(file)
    (line,) = damaged()
    assert line.endswith(f"{file.parent.name}/{file.name}: {DAMAGED}")


@pytest.mark.parametrize("content", ["<<<<<<< HEAD", None])
def test_a_lock_file_that_cannot_be_read_is_one_line(clone, monkeypatch, content):
    monkeypatch.chdir(clone)
    lock.FILE.unlink() if content is None else lock.FILE.write_text(content)
    with pytest.raises(UserError, match="^dvc.lock: expected .*, got.*; `git restore dvc.lock` may help$"):
        integrity.main()


def test_a_server_with_a_lock_file_loads_only_the_locked_files(built, tmp_path):
    lock_file = built / "dvc.lock"
    repository = shutil.copytree(built / artifacts.MODEL_REPOSITORY, tmp_path / "model_repository")
    with serving(repository, "--lock", str(lock_file)) as running:
        assert running.json("/v2/models/cnn/ready")[0] == 200
    flip_a_bit(repository / "cnn/1/model.onnx")
    flip_a_bit(repository / "fnn/labels.txt")
    shutil.move(repository / "fnn_int8", repository / "mine")
    with serving(repository, "--lock", str(lock_file)) as running:
        _, content = running.ask("/v2/repository/index", b"")
    index = {entry["name"]: entry for entry in json.loads(content)}
    assert index["cnn_int8"]["state"] == "READY"
    for model, file in ("cnn", "cnn/1/model.onnx"), ("fnn", "fnn/labels.txt"):
        assert index[model]["reason"].startswith(f"{repository / file}: expected MD5 ")
        assert index[model]["reason"].endswith("; remove the file, then `dvc checkout` restores it")
    assert index["mine"]["reason"] == f"{lock_file}: expected an output that ends with mine/config.pbtxt, got none"
