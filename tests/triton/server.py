"""A real Triton server, from PyPI's packages: `make runtimes` installs it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Server, free_ports, is_ready, wait_until

FOLDER = PROJECT / "build" / "triton"
WHEEL = FOLDER / "server" / "pytriton" / "tritonserver"


@contextlib.contextmanager
def triton(repository: Path, *options: str) -> Iterator[Server]:
    """Run Triton on a model repository and free ports, and terminate it at the end."""
    if not (FOLDER / "installed").exists():
        pytest.skip("needs Triton; run `make runtimes`")
    http, grpc, metrics = free_ports(3)
    command = [WHEEL / "bin" / "tritonserver", f"--model-repository={repository}", *options]
    command += [f"--backend-directory={FOLDER / 'backends'}", "--exit-on-error=false"]
    for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    variables = {
        "TRITON_PACKAGES": str(FOLDER / "packages"),
        "LD_LIBRARY_PATH": str(FOLDER / "server" / "nvidia_pytriton.libs"),
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or is_ready(f"http://127.0.0.1:{http}"))
            if process.poll() is not None:
                log.seek(0)
                pytest.fail(f"Triton exited with {process.returncode} before it was ready:\n{log.read()}")
            yield Server(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
        finally:
            process.terminate()
            process.wait(timeout=30)
