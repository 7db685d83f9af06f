"""A real Triton server, from PyPI's packages: `make runtimes` installs it."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.triton import ENVIRONMENT, INSTALLED, server_command
from tests.conftest import Server, free_ports, is_ready, wait_until


@contextlib.contextmanager
def triton(repository: Path, *options: str) -> Iterator[Server]:
    """Run Triton on a model repository and free ports, and terminate it at the end."""
    if not INSTALLED.exists():
        pytest.skip("needs Triton; run `make runtimes`")
    http, grpc = free_ports(2)
    command = [*server_command(repository, http, grpc), *options, "--exit-on-error=false"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or is_ready(f"http://127.0.0.1:{http}"))
            if process.poll() is not None:
                log.seek(0)
                pytest.fail(f"Triton exited with {process.returncode} before it was ready:\n{log.read()}")
            yield Server(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
        finally:
            process.terminate()
            process.wait(timeout=60)  # Triton itself waits 30 seconds for what is in progress
