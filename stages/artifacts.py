"""Every path that the pipeline writes, and atomic writes."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import UserError

if TYPE_CHECKING:  # most stages draw no figure
    from matplotlib.figure import Figure

ROOT = Path("artifacts")
DATA = ROOT / "data"
MODEL_REPOSITORY = ROOT / "model_repository"
PARAMS_SCHEMA = ROOT / "params.schema.json"

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
DATA_SPLITS = ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS))
DATA_FILES = (*DATA_SPLITS[0], *DATA_SPLITS[1])


def weights(model: str) -> Path:
    return ROOT / model / "weights.safetensors"


def training(model: str) -> Path:
    """Return the directory of the metrics of each epoch, as DVCLive writes them."""
    return ROOT / model / "training"


def training_environment(model: str) -> Path:
    """Return the file that says which processor and how many threads the weights come from."""
    return training(model) / "environment.json"


def calibration(model: str) -> Path:
    """Return the file with the temperature by which the logits of the finished training were divided."""
    return training(model) / "calibration.json"


def checkpoint(model: str) -> Path:
    """Return the file from which an interrupted training resumes; DVC does not know it, and so does not delete it."""
    return ROOT / model / ".checkpoint"


def training_lock(model: str) -> Path:
    return ROOT / model / ".training.lock"


def metrics(model: str) -> Path:
    """Return the few metrics by which `dvc metrics diff` and `dvc exp show` compare the model."""
    return ROOT / model / "metrics.json"


def metrics_int8(model: str) -> Path:
    return ROOT / model / "metrics_int8.json"


def evaluation(model: str) -> Path:
    return ROOT / model / "evaluation.json"


def per_class(model: str) -> Path:
    return ROOT / model / "per_class.csv"


def confusion(model: str) -> Path:
    return ROOT / model / "confusion.csv"


def robustness(model: str) -> Path:
    return ROOT / model / "robustness.csv"


def mistakes(model: str) -> Path:
    return ROOT / model / "mistakes.png"


def verification(model: str) -> Path:
    return ROOT / model / "verification.json"


def verification_int8(model: str) -> Path:
    return ROOT / model / "verification_int8.json"


def reliability(model: str) -> Path:
    return ROOT / model / "reliability.png"


def differences(model: str) -> Path:
    return ROOT / model / "differences.png"


def differences_int8(model: str) -> Path:
    return ROOT / model / "differences_int8.png"


def model_folder(model: str) -> Path:
    """Return the folder that is signed, released and served."""
    return MODEL_REPOSITORY / model


def onnx(model: str) -> Path:
    return model_folder(model) / "1" / "model.onnx"


def triton_config(model: str) -> Path:
    return model_folder(model) / "config.pbtxt"


def labels(model: str) -> Path:
    return model_folder(model) / "labels.txt"


def checksums(model: str) -> Path:
    """Return the file with the SHA-256 digests of the model's files, in the format of `sha256sum`."""
    return model_folder(model) / "SHA256SUMS"


def model_card(model: str) -> Path:
    return model_folder(model) / "README.md"


def bom(model: str) -> Path:
    """Return the bill of materials."""
    return model_folder(model) / "bom.cdx.json"


def signature(model: str) -> Path:
    """Return the detached signature of the model's folder, which a release makes, and no stage."""
    return model_folder(model) / "model.sig"


def int8_name(model: str) -> str:
    """Return the name of the model's int8 variant."""
    return f"{model}_int8"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a directory, and rename it to `path` when the block succeeds.

    Otherwise `path` stays as it was. One exception: a process that is killed while it replaces a directory may leave no
    `path` at all. What a killed process left at the temporary path is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)  # a rename replaces files only
        temporary.replace(path)
    finally:
        remove(temporary)


def temporary_path(path: Path) -> Path:
    """Return the path at which atomic_write writes."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file as UTF-8 with LF line endings."""
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, without metadata that would differ between runs."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def sha256_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that write_json wrote. Raises UserError if it does not exist."""
    content: dict[str, Any] = json.loads(require_file(path).read_text(encoding="utf-8"))
    return content


def require_file(path: Path) -> Path:
    """Return `path`. Raises UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: expected a file, got none; `dvc repro` writes it")
    return path
