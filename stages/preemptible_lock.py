"""A preemptible file lock: a newer process asks the holder to release it.

When DVC is killed, its stage goes on running. A new `dvc repro` must not run beside that process, and must not wait for
its end either.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from stages.errors import UserError


@contextmanager
def hold(path: Path, waiting_message: str) -> Iterator[Callable[[], bool]]:
    """Acquire the lock at `path` and yield a function that says whether a newer process claims it.

    Each process writes its token to the claim file beside the lock. The holder of the lock should release it as soon as
    the claim is no longer its own. A process that waits prints `waiting_message` once, and raises UserError if a still
    newer process claims the lock.
    """
    claim, token = path.with_suffix(".claim"), uuid4().hex
    path.parent.mkdir(parents=True, exist_ok=True)
    claim.write_text(token)

    def is_preempted() -> bool:
        return claim.read_text() != token

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(waiting_message)
    while not lock.is_locked:
        with suppress(Timeout):
            lock.acquire(timeout=0.2)
        if is_preempted():  # also after the lock is acquired, as the newer process may have claimed it in the meantime
            lock.release()
            raise UserError("stopped while waiting: a newer process takes over")
    try:
        yield is_preempted
    finally:
        lock.release()
