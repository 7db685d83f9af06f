"""Serve a model with Triton, which `make runtimes` installs: `python -m benchmarks.triton MODEL.ONNX PORT`.

ONNX Runtime runs in Triton's Python backend, with one instance and one thread. Triton's own backend for ONNX Runtime,
which PyPI lacks, would be faster: the Python backend passes tensors through shared memory to another process. gRPC has
the next port.
"""

import os
import re
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
FOLDER = PROJECT / "build" / "triton"
INSTALLED = FOLDER / "installed"
REPOSITORY = FOLDER / "repository"
ENVIRONMENT = os.environ | {
    "TRITON_PACKAGES": str(FOLDER / "packages"),
    "LD_LIBRARY_PATH": str(FOLDER / "server" / "nvidia_pytriton.libs"),
}


def server_command(repository: Path, http_port: int, grpc_port: int) -> list[str]:
    """Return the command that serves a model repository, in the environment ENVIRONMENT."""
    return [
        f"{FOLDER}/server/pytriton/tritonserver/bin/tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={FOLDER}/backends",
        "--allow-metrics=false",
        *(f"--{protocol}-address=127.0.0.1" for protocol in ("http", "grpc")),
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
    ]


def main() -> None:
    """Copy the model into a repository of its own, with one instance, and replace this process by Triton."""
    model, port = Path(sys.argv[1]).parent.parent, int(sys.argv[2])
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    config = shutil.copytree(model, REPOSITORY / model.name) / "config.pbtxt"
    config.write_text(re.sub(r"\bcount: \d+", "count: 1", config.read_text()))
    command = server_command(REPOSITORY, port, port + 1)
    os.execve(command[0], command, ENVIRONMENT)


if __name__ == "__main__":
    main()
