"""The images that every network takes: their shape, and the scaling of their pixels."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # stages/check.py starts without PyTorch
    from torch import Tensor

IMAGE_SHAPE = (1, 28, 28)  # channels, height, width


def scale_pixels(images: "Tensor") -> "Tensor":
    """Scale raw pixels, uint8 from 0 to 255, to a network's input, float32 from 0 to 1."""
    return images.float() / 255
