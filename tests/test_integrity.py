import os
import shutil
import sys

import pytest

from stages import artifacts
from tests.conftest import call, not_serving, run, serving


def flip_a_byte(path) -> None:
    """Change one bit, and neither size nor time, which is all that DVC looks at."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def damaged(clone) -> list[str]:
    """The lines about damaged files."""
    ended = run(clone, sys.executable, "-m", "checks.integrity")
    assert ended.returncode == bool(ended.stderr), ended.stderr
    return ended.stderr.splitlines()


@pytest.mark.parametrize("path", [artifacts.onnx("cnn_int8"), artifacts.evaluation("fnn")])
def test_a_changed_byte_in_an_output_is_found_and_mended(clone, path):
    assert damaged(clone) == []
    flip_a_byte(clone / path)
    assert damaged(clone) == [f"{path} is not what dvc.lock says"]
    (clone / path).unlink()
    assert damaged(clone) == []  # what is not here is no damage
    restore = ["dvc", "checkout"] if path.suffix == ".onnx" else ["git", "restore"]
    call(clone, *restore, str(path))
    assert (clone / path).exists()
    assert damaged(clone) == []


def test_a_changed_byte_in_a_folder_is_found(clone):
    folder = artifacts.training("cnn") / "plots" / "metrics"
    flip_a_byte(clone / folder / "loss.tsv")
    assert damaged(clone) == [f"{folder} is not what dvc.lock says"]


def test_a_changed_byte_in_the_cache_is_found(clone):
    file = sorted((clone / ".dvc" / "cache" / "files" / "md5").glob("??/*"))[0]
    flip_a_byte(file)
    (line,) = damaged(clone)
    assert f"{file.parent.name}/{file.name} in the cache is not what its name says" in line


def test_without_a_lock_one_line_says_what_makes_it(clone):
    (clone / "dvc.lock").unlink()
    assert damaged(clone) == ["integrity: dvc.lock is missing; `dvc repro` makes it"]


@pytest.mark.parametrize("content", ["", "<<<<<<< HEAD", "schema: '2.0'", "stages: {a: {outs: [{path: b}]}}"])
def test_a_lock_that_is_none_is_told_in_one_line(clone, content):
    (clone / "dvc.lock").write_text(content)
    (line,) = damaged(clone)
    assert line.startswith("integrity: dvc.lock cannot be read: ")


def test_only_locked_files_are_served_when_a_lock_is_given(built, tmp_path):
    lock = ("--lock", str(built / "dvc.lock"))
    repository = shutil.copytree(built / artifacts.MODEL_REPOSITORY, tmp_path / "model_repository")
    with serving(repository, *lock) as running:
        assert running.json("/v2/models/cnn/ready")[0] == 200
    for model, file in ("cnn", "cnn/1/model.onnx"), ("fnn", "fnn/labels.txt"):
        flip_a_byte(repository / file)
        ended = not_serving(repository, *lock)
        assert (ended.returncode, ended.stderr) == (
            1,
            f"serving: {repository / model / '1' / 'model.onnx'} cannot be loaded: "
            f"{file} is not the file that is locked; `dvc checkout` brings that back\n",
        )
        shutil.rmtree(repository / model)
    shutil.move(repository / "fnn_int8", repository / "mine")
    assert "cannot be loaded: mine/1/model.onnx is not in " in not_serving(repository, *lock).stderr
