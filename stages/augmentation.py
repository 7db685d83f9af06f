"""Random distortions of training images."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from stages.params import Affine


def random_affine(images: Tensor, limits: Affine) -> Tensor:
    """Rotate, scale, shear and shift every image, float32 [n, 1, h, w], by its own draw, uniform within `limits`.

    All images of the batch go through one bilinear grid sample; what comes from outside a picture is black.
    """
    count, _, height, width = images.shape

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, device=images.device) * 2 - 1) * limit

    angle = draw(math.radians(limits.rotation))
    zoom = 1 + draw(limits.scale)
    shear = draw(limits.shear)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # affine_grid counts in halves of the picture: [-1, 1] is its whole width
    shift_x, shift_y = draw(2 * limits.shift / width), draw(2 * limits.shift / height)
    matrices = torch.stack([cos, shear * cos - sin, shift_x, sin, shear * sin + cos, shift_y], dim=1).view(count, 2, 3)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
