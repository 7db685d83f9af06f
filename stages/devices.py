"""What a training runs on: device, threads, memory."""

import ctypes
import sys

import torch

from stages import params
from stages.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose(name: str) -> torch.device:
    """Return the named device, or for "auto" the fastest; raise UserError if this machine has no such device."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device, is_here in here.items() if is_here]
    if name != "auto" and name not in available:
        allowed = ", ".join(["auto", *available])
        raise UserError(f"{params.FILE}: device is {name!r}, which this machine lacks; allowed: {allowed}")
    return torch.device(available[0] if name == "auto" else name)


def use_threads(threads: int) -> None:
    """Compute with so many threads on the CPU; 0 leaves it to PyTorch: one for each core, or OMP_NUM_THREADS."""
    if threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of handing it back to the system (glibc only).

    Each training step takes and frees the same large blocks; having the system map and clear them anew every time took
    a third of the cnn's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
