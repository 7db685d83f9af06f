"""The hardware of a training: device, processor, threads, memory."""

import ctypes
import platform
import re
import sys
from pathlib import Path

import torch

from stages.errors import UserError

BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and Arm CPUs, as PyTorch names them
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def select_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is CUDA, else MPS, else the CPU.

    Raises UserError if this machine has no such device.
    """
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device in is_available if is_available[device]]
    if name != "auto" and name not in available:
        raise UserError(f"device: expected {' or '.join(['auto', *available])} on this machine, got {name}")
    return torch.device(available[0] if name == "auto" else name)


def select_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which a recipe with this precision trains: bfloat16 only where the hardware computes in it.

    Elsewhere, it is emulated and slower than float32.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bfloat16 = device.type == "cpu" and any(capabilities.get(name) for name in BFLOAT16_CAPABILITIES)
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16 else torch.float32


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """Return what decides the bytes of a training's weights besides parameters, data, code and versions."""
    precision = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "precision": precision}
    threads = torch.get_num_threads()
    return {"device": device.type, "processor": processor_name(), "threads": threads, "precision": precision}


def processor_name() -> str:
    """Return the CPU's model name, such as "AMD EPYC 7763 64-Core Processor"."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def set_cpu_threads(threads: int) -> None:
    """Set the number of intra-op threads on the CPU; 0 keeps OpenMP's, which the package sets when it is imported."""
    if threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Make malloc reuse freed memory instead of returning it to the system (glibc only).

    Each training step allocates and frees the same large blocks; mapping and clearing them anew took a third of the
    cnn's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
