import errno
import importlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stages import artifacts, command, train
from stages.errors import UserError
from tests.conftest import PROJECT


def run(stage: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", f"stages.{stage}", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


@pytest.fixture
def run_here(monkeypatch):
    """A function that runs a stage through its entry point in this process, and returns its exit status or message."""

    def run_stage(stage, *arguments: str):
        monkeypatch.setattr(sys, "argv", [f"stages/{stage.__module__.rpartition('.')[2]}.py", *arguments])
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
            command.run(stage, *["model"] * len(arguments))
        return getattr(ended.value, "code", ended.value)

    return run_stage


def fail_to_write(number: int):
    """Return a replacement of Path.write_bytes that writes a part of the content and fails."""

    def write_bytes(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number), str(path))

    return write_bytes


def test_a_user_error_is_one_line_and_exit_status_1(workspace, change):
    change({"recipes.default.fnn.dropout": 1.5})
    ended = run("check")
    assert ended.returncode == 1
    assert ended.stderr == "check: params.yaml: recipes.default.fnn.dropout: expected x < 1.0, got 1.5\n"


@pytest.mark.parametrize("stage", ["train", "evaluate", "export", "verify", "quantize", "verify_int8", "card"])
def test_an_unknown_model_is_a_user_error(workspace, stage):
    main = importlib.import_module(f"stages.{stage}").main
    with pytest.raises(UserError, match=r"^params.yaml: models: expected names under networks \(.*\), got 'resnet'$"):
        main("resnet")


def test_a_missing_argument_shows_the_usage(workspace):
    ended = run("card")
    assert ended.returncode == 2
    assert "usage: python -m stages.card [-h] model" in ended.stderr


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_an_error_of_the_file_system_is_one_line_and_keeps_the_earlier_results(
    models, monkeypatch, run_here, number, message
):
    before = artifacts.weights("fnn").read_bytes()
    artifacts.remove(artifacts.checkpoint("fnn"))
    monkeypatch.setattr(Path, "write_bytes", fail_to_write(number))
    assert run_here(train.main, "fnn") == f"train: artifacts/fnn/..checkpoint.partial: {message}"
    assert artifacts.weights("fnn").read_bytes() == before
    assert not list(artifacts.ROOT.rglob(".*.partial"))


def test_a_full_disk_is_one_line_and_keeps_the_earlier_file(workspace):
    artifacts.PARAMS_SCHEMA.write_text("earlier")
    ended = run("check", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert (ended.returncode, ended.stderr) == (1, "check: File too large\n")
    assert artifacts.PARAMS_SCHEMA.read_text() == "earlier"
    assert not list(artifacts.ROOT.glob(".*.partial"))


def test_ctrl_c_is_one_line_and_exit_status_130(monkeypatch, run_here, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_here(interrupt) == 130
    assert capsys.readouterr().err == "test_command: interrupted; run the same command again to continue\n"
