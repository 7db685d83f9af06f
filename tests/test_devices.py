import os
import platform
import subprocess
import sys

import pytest
import torch

from stages import devices
from stages.errors import UserError
from tests.conftest import PROJECT


def test_the_cpu_can_always_be_chosen():
    assert devices.choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_fastest_that_is_there(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.choose("auto") == torch.device(chosen)


def test_a_device_that_is_not_there_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device is 'cuda', which this machine lacks; allowed: auto, cpu$"):
        devices.choose("cuda")


def test_the_number_of_threads_is_what_it_is_told_or_pytorchs(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    devices.use_threads(0)
    devices.use_threads(3)
    assert calls == [3]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc on Linux")
def test_freed_memory_is_kept():
    def resident_pages(preparation: str) -> int:
        """Of a process that has freed 256 MiB."""
        script = f"import torch; from stages import devices; {preparation}; torch.ones(2**26)"
        script += "; print(open('/proc/self/statm').read().split()[1])"
        return int(subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, check=True).stdout)

    kept = resident_pages("devices.keep_freed_memory()") - resident_pages("pass")
    assert kept * os.sysconf("SC_PAGE_SIZE") > 200 * 2**20
