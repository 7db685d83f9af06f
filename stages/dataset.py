"""The data set's files as tensors."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stages import artifacts
from stages.errors import UserError
from stages.params import Data

IMAGE_SHAPE = (1, 28, 28)
IDX_BYTES = b"\0\0\x08"  # how an IDX file of bytes begins; its rank follows, then a big-endian uint32 a dimension


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 1, 28, 28], and their labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Self:
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Self:
        return Split(self.images.to(device), self.labels.to(device))


def load_training(data: Data) -> Split:
    return _load(artifacts.TRAIN_IMAGES, artifacts.TRAIN_LABELS, data)


def load_test(data: Data) -> Split:
    return _load(artifacts.TEST_IMAGES, artifacts.TEST_LABELS, data)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(images_name: str, labels_name: str, data: Data) -> Split:
    """Read one half of the data set. Raises UserError if a file is missing, altered or not what its header says."""
    images = _read_idx(images_name, data)
    labels = _read_idx(labels_name, data)
    if images.shape[1:] != IMAGE_SHAPE[1:] or labels.shape != images.shape[:1] or not len(labels):
        found = f"{images_name} is {list(images.shape)}, {labels_name} {list(labels.shape)}"
        raise UserError(f"{found}; allowed: [n, 28, 28] and [n] with n > 0")
    if labels.max() >= len(data.classes):
        allowed = f"0 to {len(data.classes) - 1}, for the {len(data.classes)} data.classes in params.yaml"
        raise UserError(f"{labels_name} has the label {labels.max()}; allowed: {allowed}")
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write an array of uint8 in the format of MNIST's files."""
    header = struct.pack(f">3sB{values.ndim}I", IDX_BYTES, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def _read_idx(name: str, data: Data) -> np.ndarray:
    path = artifacts.require(artifacts.DATA / name)
    if (found := sha256(path)) != (expected := data.sha256[name]):
        raise UserError(f"{path} is damaged: its SHA-256 is {found}, not {expected}; `dvc repro download` restores it")
    content = np.fromfile(path, dtype=np.uint8)
    try:
        magic, rank = struct.unpack_from(">3sB", content)
        shape = struct.unpack_from(f">{rank}I", content, offset=4)
        if magic == IDX_BYTES:
            return content[4 + 4 * rank :].reshape(shape)
    except (struct.error, ValueError):
        pass  # shorter than its header, or than the header says
    raise UserError(f"{path} is no IDX file of bytes: its header does not match its {len(content):,} bytes")
