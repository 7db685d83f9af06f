"""The data set's IDX files as tensors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from stages import artifacts, idx
from stages.errors import UserError
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
    images, labels = idx.read_labelled_images(_verified(images_name, data), _verified(labels_name, data), data)
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _verified(name: str, data: Data) -> Path:
    """Return the path of a data file. Raises UserError if it is missing or has another digest than in params.yaml."""
    path = artifacts.require_file(artifacts.DATA / name)
    if (found := artifacts.sha256_digest(path)) != (expected := data.sha256[name]):
        raise UserError(f"{path}: expected the SHA-256 {expected}, got {found}; `dvc repro download` restores the file")
    return path
