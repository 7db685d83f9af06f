"""The device that a training runs on."""

import torch

from stages import params
from stages.errors import UserError


def choose(name: str) -> torch.device:
    """Return the named device, or for "auto" the fastest; raise UserError if this machine has no such device."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device, is_here in here.items() if is_here]
    if name != "auto" and name not in available:
        allowed = ", ".join(["auto", *available])
        raise UserError(f"{params.FILE}: device is {name!r}, which this machine lacks; allowed: {allowed}")
    return torch.device(available[0] if name == "auto" else name)
