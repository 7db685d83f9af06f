"""DVC's experiment queue: failures of DVC while it reads experiments."""

import os
import shutil
from collections.abc import Callable

import pytest

from experiments import queue
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
