import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from stages import artifacts, devices
from stages.errors import UserError
from tests.conftest import PROJECT

needs_linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc and GNU OpenMP")


def run_python(script: str, folder=PROJECT, **variables: str) -> str:
    """Run a script in a process with only these settings of OpenMP, which prints them, and return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"PYTHONPATH": str(PROJECT), "OMP_DISPLAY_ENV": "verbose"} | variables
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=-2, text=True, check=True).stdout


def test_the_cpu_is_always_available():
    assert devices.select_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "selected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_selects_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, selected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.select_device("auto") == torch.device(selected)


def test_an_unavailable_device_is_a_user_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="^device: expected auto or cpu on this machine, got cuda$"):
        devices.select_device("cuda")


@pytest.mark.parametrize(
    ("precision", "capabilities", "dtype"),
    [
        ("bfloat16", {"avx512_bf16": True}, torch.bfloat16),
        ("bfloat16", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("bfloat16", {"neon": True, "bf16": True}, torch.bfloat16),
        ("bfloat16", {"avx512_f": True, "amx_bf16": False}, torch.float32),
        ("float32", {"amx_bf16": True}, torch.float32),
    ],
)
def test_bfloat16_is_selected_only_where_the_processor_computes_in_it(monkeypatch, precision, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.select_dtype(precision, torch.device("cpu")) is dtype
    assert devices.select_dtype(precision, torch.device("mps")) is torch.float32


def test_the_environment_names_processor_threads_and_precision():
    assert devices.environment(torch.device("cpu"), torch.bfloat16) == {
        "device": "cpu",
        "processor": devices.processor_name(),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16",
    }
    assert devices.processor_name()


@needs_linux
def test_the_users_threads_and_spin_count_and_freed_memory_are_kept():
    """All in one process, because PyTorch takes seconds to import."""
    script = (
        "from stages import devices; import torch\n"
        "def allocate_and_free():\n"
        "    before = resident_pages(); torch.ones(2**26); print(resident_pages() - before)\n"
        "def resident_pages(): return int(open('/proc/self/statm').read().split()[1])\n"
        "allocate_and_free(); devices.keep_freed_memory(); allocate_and_free()\n"
        "devices.set_cpu_threads(0); print(torch.get_num_threads())\n"
        "devices.set_cpu_threads(3); print(torch.get_num_threads())"
    )
    out = run_python(script, OMP_NUM_THREADS="2", GOMP_SPINCOUNT="7")
    assert "GOMP_SPINCOUNT = '7'" in out
    *pages, users_threads, set_threads = out.splitlines()[-4:]
    assert (users_threads, set_threads) == ("2", "3")
    returned, kept = (int(count) * os.sysconf("SC_PAGE_SIZE") for count in pages)
    assert returned < 2**20 * 50
    assert kept > 2**20 * 200


def test_a_waiting_policy_of_the_user_is_kept():
    script = "import os, stages; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run_python(script, OMP_WAIT_POLICY="passive").splitlines()[-1] == "None"


@needs_linux
def test_a_process_that_may_use_one_cpu_uses_one_thread(models, workspace):
    script = (
        "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "import stages, torch; from pathlib import Path; from stages import devices, inference\n"
        "devices.set_cpu_threads(0)\n"
        f"session = inference.open_session(Path('{artifacts.onnx('fnn')}'), class_count=10)\n"
        "print(torch.get_num_threads(), session.get_session_options().intra_op_num_threads)\n"
        "print(os.environ['OMP_NUM_THREADS'], os.environ['GOMP_SPINCOUNT'])"
    )
    threads, variables = run_python(script, workspace).splitlines()[-2:]
    assert threads == "1 1"
    assert re.fullmatch(r"1 \d+", variables)
