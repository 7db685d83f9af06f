"""The image of Containerfile: built by Buildah on a base of Debian, and run as Kubernetes runs it.

Neither needs a container engine or an image registry. The build uses the package indexes that APT and pip use here.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc

from stages import artifacts, idx
from tests.conftest import PROJECT, Server, call, free_ports, is_ready
from tests.test_deploy import RUNTIME, load_manifest

TOOLS = ("buildah", "mmdebstrap")  # .ci/run installs them

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # seconds: the build takes more than one minute on two idle cores
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the root directory"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)}"),
]

NOBODY = 65532
MAX_IMAGE_BYTES = 600e6  # docs/deployment.md states the size

PACKAGES = "libstdc++6,python3-venv"  # that Containerfile expects in its base
PYTHON = r"\./usr/bin/python(3\.\d+)"  # in the archive of the base
# What Debian's own images exclude.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# Run a command as process 1, without privileges, in a root directory that is read-only, as are its models.
RUN = """
root=$1 models=$2 user=$3
shift 3
mount --bind "$root" "$root"
mount --types proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --options bind,ro "$models" "$root/models"
mount --options remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
"""


def apt_options(file: Path) -> str:
    """Return the option for mmdebstrap to download packages with the settings of APT here."""
    file.write_text(call(PROJECT, "apt-config", "dump", "--format", '%F "%v";%n', "Acquire"))
    return f"--aptopt={file}"


def apt_sources() -> list[str]:
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *folder.glob("sources.list.d/*.list"), *folder.glob("sources.list.d/*.sources")]
    return [str(file) for file in files if file.is_file()]


def download_wheels(folder: Path, base: Path) -> list[str]:
    """Download the dependencies for the Python of a base; return the options for a build that installs them."""
    with tarfile.open(base) as archive:
        (version,) = {match[1] for name in archive.getnames() if (match := re.fullmatch(PYTHON, name))}
    options = ("--only-binary", ":all:", "--python-version", version, "--dest", str(folder / "wheels"))
    call(PROJECT, sys.executable, "-m", "pip", "download", "-r", "requirements/serve.txt", "--require-hashes", *options)
    (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    return [f"--volume={folder}/wheels:/wheels:ro", f"--volume={folder}/pip.conf:/etc/pip.conf:ro"]


@pytest.fixture(scope="session")
def image(build_once, built: Path) -> Path:
    """A folder with the image `with-models`: its root directory, `root`, and its configuration, `config.json`."""

    def fill(folder: Path) -> None:
        storage = folder / "storage"
        buildah = ("buildah", "--root", str(storage), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
        exclude = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
        call(
            folder,
            *("mmdebstrap", "--variant=essential", f"--include={PACKAGES}", *exclude),
            *(apt_options(folder / "apt.conf"), "", "base.tar", *apt_sources()),
        )
        (folder / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
        call(folder, *buildah, "bud", "--tag", "base", ".")
        call(
            built,
            *(*buildah, "bud", "--isolation", "chroot", "--format", "docker", "--build-arg", "BASE=localhost/base"),
            *(*download_wheels(folder, folder / "base.tar"), "--target", "with-models", "--tag", "server", "."),
        )
        inspected = json.loads(call(folder, *buildah, "inspect", "--type", "image", "server"))
        (folder / "config.json").write_text(json.dumps(inspected["Docker"]["config"]))
        container = call(folder, *buildah, "from", "server").strip()
        shutil.move(call(folder, *buildah, "mount", container).strip(), folder / "root")
        for unused in (storage, folder / "wheels"):
            shutil.rmtree(unused)
        (folder / "base.tar").unlink()

    return build_once("image", fill)


@pytest.fixture(scope="session")
def root(image: Path) -> Path:
    return image / "root"


@pytest.fixture(scope="session")
def config(image: Path) -> dict[str, Any]:
    return json.loads((image / "config.json").read_text())


def child(process: subprocess.Popen) -> int:
    """Return the ID of a process's only child."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


@contextlib.contextmanager
def running(
    image: Path, models: Path | None = None, arguments: list[str] | None = None
) -> Iterator[tuple[Server, int]]:
    """Run the image, by default with its own models and arguments, on a free port; kill it at the end.

    Yield the server and the ID of its process.
    """
    root, config = image / "root", json.loads((image / "config.json").read_text())
    port, grpc_port = free_ports(2)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    command = [*config["Entrypoint"], *(arguments or config["Cmd"]), *ports]
    script = ["sh", "-euc", RUN, "sh", str(root), str(models or root / "models"), config["User"], *command]
    variables = dict(variable.split("=", 1) for variable in config["Env"])
    log_file = image / f"{port}.log"
    with log_file.open("w+") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", *script], env=variables, stdout=log, stderr=log
        )
        server = Server(process, f"127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", log)
        try:
            while not is_ready(f"http://{server.address}"):
                if process.poll() is not None:
                    pytest.fail(f"the container ended with {process.returncode}:\n{log_file.read_text()}")
                time.sleep(0.1)
            yield server, child(process)
        finally:
            if process.poll() is None:  # unshare ends after its child
                os.kill(child(process), signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def container(image: Path) -> Iterator[tuple[Server, int]]:
    with running(image) as started:
        yield started


def test_the_image_serves_the_models_that_are_inside(container, built: Path, small_data: Path) -> None:
    server, _ = container
    images = idx.read_idx(small_data / artifacts.TEST_IMAGES)[:10, None]
    session = onnxruntime.InferenceSession(built / artifacts.onnx("cnn"))
    tensor = {"name": "image", "shape": images.shape, "datatype": "UINT8", "data": images.ravel().tolist()}
    status, answer = server.json("/v2/models/cnn/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    labels = {output["name"]: output["data"] for output in answer["outputs"]}["label"]
    np.testing.assert_array_equal(labels, session.run(["label"], {"image": images})[0])


def test_the_image_serves_grpc(container) -> None:
    server, _ = container
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        assert client.is_model_ready("cnn")


def test_the_image_reads_pictures(container) -> None:
    server, _ = container
    assert server.ask("/digits", (PROJECT / "docs" / "seven.png").read_bytes())[0] == 200


def test_the_image_serves_the_models_of_a_volume(image: Path, built: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shutil.copytree(built / artifacts.MODEL_REPOSITORY / "fnn", tmp_path / "fnn")
    with running(image, tmp_path) as (server, _):
        assert server.ask("/v2/models/fnn/ready")[0] == 200
        assert server.ask("/v2/models/cnn")[0] == 404


def test_the_image_serves_its_models_with_the_arguments_of_the_runtime_for_kserve(image: Path) -> None:
    (container,) = load_manifest(RUNTIME)["spec"]["containers"]
    with running(image, arguments=container["args"]) as (server, _):
        assert server.ask("/v2/models/cnn/ready")[0] == 200


def test_the_server_is_process_1_of_a_user_without_privileges(container) -> None:
    _, process = container
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    status = {name: values.split() for name, values in (line.split(":", 1) for line in lines)}
    assert status["NSpid"][-1] == "1"
    assert set(status["Uid"] + status["Gid"]) == {str(NOBODY)}
    assert status["Groups"] == []
    assert {int(status[kind][0], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


@pytest.mark.parametrize("folder", ["", "app", "dependencies", "models", "tmp"])
def test_the_server_runs_without_a_folder_that_it_could_write_to(folder: str, container) -> None:
    _, process = container
    with pytest.raises(OSError, match="Read-only file system"):
        (Path(f"/proc/{process}/root") / folder / "file").touch()


def test_the_image_has_neither_compilers_nor_pip(root: Path) -> None:
    programs = {path.name for folder in ("usr/bin", "usr/local/bin", "usr/sbin") for path in (root / folder).iterdir()}
    assert "python3" in programs
    assert not programs & {"as", "c++", "cc", "clang", "g++", "gcc", "ld", "make", "pip", "pip3", "rustc"}
    assert not [*root.rglob("pip"), *root.rglob("ensurepip"), *root.rglob("pip-*.whl"), *root.rglob("Python.h")]


def test_the_image_has_bytecode_for_all_modules_of_the_server(root: Path) -> None:
    modules = {path.stem for path in (root / "app" / "serving").glob("*.py")}
    assert modules == {path.name.split(".")[0] for path in (root / "app" / "serving" / "__pycache__").glob("*.pyc")}


def test_the_image_has_only_the_files_of_the_server_from_the_checkout(root: Path) -> None:
    assert {path.name for path in (root / "app").iterdir()} == {"serving"}
    assert {path.name for path in (root / "models").iterdir()} == {"cnn", "cnn_int8", "fnn", "fnn_int8"}


def test_the_image_is_small(root: Path) -> None:
    size = sum(path.lstat().st_size for path in root.rglob("*"))
    assert size < MAX_IMAGE_BYTES, f"expected at most {MAX_IMAGE_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB"


def test_the_health_check_succeeds_only_while_the_server_is_ready(image: Path, root: Path, config) -> None:
    kind, *command = config["Healthcheck"]["Test"]
    assert (kind, config["ExposedPorts"]) == ("CMD", {"8000/tcp": {}, "8001/tcp": {}})

    def check() -> int:
        replaced = [part.replace("8000", port) for part in command]
        return subprocess.run(["chroot", str(root), *replaced], stderr=subprocess.DEVNULL).returncode

    with running(image) as (server, _):
        _, port = server.address.split(":")
        assert check() == 0
    assert check() == 1


def test_the_telemetry_of_onnx_runtime_is_disabled(container, config) -> None:
    server, _ = container
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]
    assert "telemetry" not in Path(server.log.name).read_text()  # ONNX Runtime warns if it cannot save an ID


def test_sigterm_ends_the_container_with_status_0(image: Path) -> None:
    with running(image) as (server, process):
        os.kill(process, signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
