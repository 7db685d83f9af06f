import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock

from stages import preemptible_lock
from stages.errors import UserError
from tests.conftest import PROJECT

PREEMPTED = "stopped while waiting: a newer process takes over"


class Holder(Thread):
    """A thread that holds the lock until it is preempted or released, and keeps the error that stopped it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.held, self.released, self.error = path, Event(), Event(), None
        previous = self.claim()
        self.start()
        while self.claim() in (previous, ""):  # so that the holders claim the lock in the order of their construction
            time.sleep(0.001)

    def claim(self) -> str:
        file = self.path.with_suffix(".claim")
        return file.read_text() if file.exists() else ""

    def run(self) -> None:
        try:
            with preemptible_lock.hold(self.path, "waiting") as is_preempted:
                self.held.set()
                while not is_preempted() and not self.released.is_set():
                    time.sleep(0.001)
        except UserError as error:
            self.error = str(error)


def test_a_single_process_is_never_preempted(tmp_path, capsys):
    for _ in range(2):
        with preemptible_lock.hold(tmp_path / "lock", "waiting") as is_preempted:
            assert not is_preempted()
    assert capsys.readouterr().out == ""


def test_a_newer_process_preempts_the_holder_and_gets_the_lock(tmp_path, capsys):
    out = ""
    with preemptible_lock.hold(tmp_path / "lock", "waiting") as is_preempted:
        newer = Holder(tmp_path / "lock")
        while "waiting" not in out:
            out += capsys.readouterr().out
            time.sleep(0.001)
        assert is_preempted()
        assert not newer.held.is_set()
    newer.held.wait()
    newer.released.set()
    newer.join()
    assert newer.error is None
    assert out + capsys.readouterr().out == "waiting\n"


@pytest.mark.parametrize("delay", [0, 0.01, 0.05, 0.1, 0.2] * 4)
def test_of_three_processes_the_newest_gets_the_lock_and_the_middle_one_stops(tmp_path, delay):
    path = tmp_path / "lock"
    with preemptible_lock.hold(path, "waiting"):
        middle = Holder(path)
        time.sleep(delay)  # the middle one polls the lock, so that the newest claims it at any time between two polls
        newest = Holder(path)
    newest.held.wait()
    middle.join()
    assert newest.is_alive()
    newest.released.set()
    newest.join()
    assert (middle.held.is_set(), middle.error) == (False, PREEMPTED)
    assert newest.error is None


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_releases_the_lock(tmp_path, error):
    with pytest.raises(type(error)), preemptible_lock.hold(tmp_path / "lock", "waiting"):
        raise error
    FileLock(tmp_path / "lock").acquire(blocking=False)


def test_a_killed_process_releases_the_lock(tmp_path, capsys):
    script = (
        "import sys, time; from pathlib import Path; from stages import preemptible_lock\n"
        "with preemptible_lock.hold(Path(sys.argv[1]), 'waiting'): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, tmp_path / "lock"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    with preemptible_lock.hold(tmp_path / "lock", "waiting") as is_preempted:
        assert not is_preempted()
    assert capsys.readouterr().out == ""
