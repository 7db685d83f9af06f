"""The data set's files as tensors."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stages import artifacts, idx
from stages.errors import UserError
from stages.params import Data

IMAGE_SHAPE = (1, 28, 28)


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 1, 28, 28], and their labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Self:
        return Split(self.images.index_select(0, indices), self.labels[indices])  # copies whole images: far quicker

    def to(self, device: torch.device) -> Self:
        return Split(self.images.to(device), self.labels.to(device))


def load_training(data: Data) -> Split:
    return _load(artifacts.TRAIN_IMAGES, artifacts.TRAIN_LABELS, data)


def load_test(data: Data) -> Split:
    return _load(artifacts.TEST_IMAGES, artifacts.TEST_LABELS, data)


def _load(images_name: str, labels_name: str, data: Data) -> Split:
    """Read one half of the data set. Raises UserError if a file is missing, altered or not what its header says."""
    images = _read(images_name, data)
    labels = _read(labels_name, data)
    if images.shape[1:] != IMAGE_SHAPE[1:] or labels.shape != images.shape[:1] or not len(labels):
        found = f"{images_name} is {list(images.shape)}, {labels_name} {list(labels.shape)}"
        raise UserError(f"{found}; allowed: [n, 28, 28] and [n] with n > 0")
    if labels.max() >= len(data.classes):
        allowed = f"0 to {len(data.classes) - 1}, for the {len(data.classes)} data.classes in params.yaml"
        raise UserError(f"{labels_name} has the label {labels.max()}; allowed: {allowed}")
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _read(name: str, data: Data) -> np.ndarray:
    path = artifacts.require(artifacts.DATA / name)
    if (found := artifacts.sha256(path)) != (expected := data.sha256[name]):
        raise UserError(f"{path} is damaged: its SHA-256 is {found}, not {expected}; `dvc repro download` restores it")
    return idx.read(path)
