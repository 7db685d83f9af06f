"""DVC's experiment queue: failures while it is read, and experiments that are killed."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from experiments import queue
from experiments.queue import RUNNING, Experiment
from stages.errors import UserError


@pytest.fixture
def fail(project, tmp_path, monkeypatch) -> Callable[[int], None]:
    """A function that lets the next calls of `dvc` fail, as if a running experiment's folder were removed."""
    monkeypatch.setattr(queue, "POLL_SECONDS", 0)
    calls, script = tmp_path / "calls", tmp_path / "bin" / "dvc"

    def install(count: int) -> None:
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\necho >> {calls}\n[ $(wc -l < {calls}) -gt {count} ] && exec {shutil.which("dvc")} "$@"\n'
            "echo 'WARNING: outdated' >&2\necho \"ERROR: directory 'tmp' does not exist\" >&2\nexit 255\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_experiments_are_read_again_if_one_ends_meanwhile(fail):
    fail(2)
    assert queue.read_experiments() == {}


def test_a_failure_that_lasts_is_one_line_with_dvcs_error(fail):
    fail(3)
    message = "`dvc exp show --json`: expected exit status 0, got 255: ERROR: directory 'tmp' does not exist"
    with pytest.raises(UserError, match=f"^{message}$"):
        queue.read_experiments()


def test_an_experiment_whose_process_was_killed_is_not_waited_for(monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    experiments = {"one": Experiment("1", RUNNING, os.getpid()), "two": Experiment("2", RUNNING, ended.pid)}
    monkeypatch.setattr(queue, "read_experiments", lambda: experiments)
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(queue, "COLLECTION_SECONDS", 0.1)
    with pytest.raises(UserError, match="^two: its process was killed; run the same command again to continue$"):
        queue.wait_until_finished(experiments, jobs=1)
