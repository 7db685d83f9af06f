"""Every path that the pipeline writes, and the one way to write them."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import UserError

if TYPE_CHECKING:  # most stages draw nothing
    from matplotlib.figure import Figure

ROOT = Path("artifacts")
DATA = ROOT / "data"
MODEL_REPOSITORY = ROOT / "model_repository"
PARAMS_SCHEMA = ROOT / "params.schema.json"

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
DATA_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


def weights(model: str) -> Path:
    return ROOT / model / "weights.safetensors"


def training(model: str) -> Path:
    """The folder of the training's metrics, epoch by epoch."""
    return ROOT / model / "training"


def checkpoint(model: str) -> Path:
    """What a stopped training goes on from; nothing that DVC knows, so that it stays."""
    return ROOT / model / ".checkpoint"


def training_lock(model: str) -> Path:
    return ROOT / model / ".training.lock"


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


def differences(model: str) -> Path:
    return ROOT / model / "differences.png"


def differences_int8(model: str) -> Path:
    return ROOT / model / "differences_int8.png"


def onnx(model: str) -> Path:
    return MODEL_REPOSITORY / model / "1" / "model.onnx"


def triton_config(model: str) -> Path:
    return MODEL_REPOSITORY / model / "config.pbtxt"


def class_names(model: str) -> Path:
    return MODEL_REPOSITORY / model / "labels.txt"


def checksums(model: str) -> Path:
    """The SHA-256 of each of the model's files, as `sha256sum --check` reads them."""
    return MODEL_REPOSITORY / model / "SHA256SUMS"


def card(model: str) -> Path:
    return MODEL_REPOSITORY / model / "README.md"


def int8(model: str) -> str:
    """The name of the model's int8 variant."""
    return f"{model}_int8"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` for a file or folder, which is renamed to `path` if nothing goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)  # the system renames onto files only
        temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_picture(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, the same bytes each time."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """Read what write_json wrote. Raises UserError if there is no such file."""
    return json.loads(require(path).read_text(encoding="utf-8"))


def require(path: Path) -> Path:
    """Return `path`; raise UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; `dvc repro` makes it")
    return path
