"""One process at a time, and a newer one before an older: DVC, when it is killed, leaves its stages running."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def take(path: Path, waiting: str) -> Iterator[Callable[[], bool]]:
    """Hold the lock at `path`; give a function that tells whether another process has asked for it since.

    While an older process holds it, print the line `waiting`, and ask for it by touching the file.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(waiting)
    while not lock.is_locked:
        path.touch()
        with suppress(Timeout):
            lock.acquire(timeout=1)
    touched = path.stat().st_mtime_ns
    try:
        yield lambda: path.stat().st_mtime_ns != touched
    finally:
        lock.release()
