"""The data set's IDX files as tensors."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages import artifacts, idx
from stages.errors import UserError
from stages.images import IMAGE_SHAPE
from stages.params import Data


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 1, 28, 28], and their labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Self:
        # index_select copies whole images, which is much faster than advanced indexing
        return type(self)(self.images.index_select(0, indices), self.labels[indices])

    def to(self, device: torch.device) -> Self:
        """Return the split on a device."""
        return type(self)(self.images.to(device), self.labels.to(device))


def load_training_set(data: Data) -> Split:
    """Load the training images, from which the validation split is taken too."""
    return _load_split(artifacts.TRAIN_IMAGES, artifacts.TRAIN_LABELS, data)


def load_test_set(data: Data) -> Split:
    """Load the test images."""
    return _load_split(artifacts.TEST_IMAGES, artifacts.TEST_LABELS, data)


def _load_split(images_name: str, labels_name: str, data: Data) -> Split:
    """Load two IDX files. Raises UserError if a file is missing, altered or has another shape or unknown labels."""
    images = _read_verified(images_name, data)
    labels = _read_verified(labels_name, data)
    if images.shape[1:] != IMAGE_SHAPE[1:] or labels.shape != images.shape[:1] or not len(labels):
        found = f"{list(images.shape)} and {list(labels.shape)}"
        raise UserError(f"{images_name}, {labels_name}: expected [n, 28, 28] and [n] with n > 0, got {found}")
    data.check_labels(labels_name, labels)
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _read_verified(name: str, data: Data) -> NDArray[np.uint8]:
    path = artifacts.require_file(artifacts.DATA / name)
    if (found := artifacts.sha256_digest(path)) != (expected := data.sha256[name]):
        raise UserError(f"{path}: expected the SHA-256 {expected}, got {found}; `dvc repro download` restores the file")
    return idx.read_idx(path)
