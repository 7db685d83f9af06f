"""Distortions of images: random ones, to train on and to test with."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from stages import networks
from stages.params import Distortion


def distort(images: Tensor, limits: Distortion) -> Tensor:
    """Distort uint8 images [n, 1, 28, 28] in all ways at once; return a network's input, float32 from 0 to 1."""
    scaled = random_strokes(images, limits.strokes) if limits.strokes else networks.scale(images)
    return random_affine(scaled, limits)


def random_affine(images: Tensor, limits: Distortion) -> Tensor:
    """Rotate, scale and shift every image, float32 [n, 1, 28, 28], by its own draw, uniform within `limits`.

    All images of the batch go through one bilinear grid sample; what comes from outside a picture is black.
    """
    count, _, height, width = images.shape

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, 1, 1, device=images.device) * 2 - 1) * limit

    angle = draw(math.radians(limits.rotation))
    zoom = 1 + draw(limits.scale)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # grid_sample counts from -1 to 1 across the picture, so that a pixel is 2 / width
    shift_x, shift_y = draw(2 * limits.shift / width), draw(2 * limits.shift / height)
    x = torch.linspace(1 / width - 1, 1 - 1 / width, width, device=images.device)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, height, device=images.device).unsqueeze(1)
    # as functional.affine_grid would, without its matrix product, which takes as long as the sampling itself
    grid = torch.empty(2, count, height, width, device=images.device)  # x and y apart: quicker to write and to read
    torch.add(cos * x, shift_x - sin * y, out=grid[0])
    torch.add(sin * x, shift_y + cos * y, out=grid[1])
    return functional.grid_sample(images, grid.movedim(0, -1), padding_mode="zeros", align_corners=False)


def random_strokes(images: Tensor, limit: float) -> Tensor:
    """Thin or thicken the strokes of uint8 images [n, 1, h, w], each by its own draw, uniform within `limit`.

    A limit of 1 is all the way to `thin` or `thicken`. Returns float32 from 0 to 1.
    """
    change = (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * limit
    negative = (change < 0) * torch.tensor(255, dtype=torch.uint8)  # inverts pixels: to thin is to thicken the negative
    extreme = thicken(images ^ negative) ^ negative
    return networks.scale(images.float().lerp_(extreme.float(), change.abs()))


def thicken(images: Tensor) -> Tensor:
    """Dilate uint8 images [n, 1, h, w]: each pixel becomes the brightest of 2 x 2, itself at the upper left.

    At the edge a pixel is its own neighbour. Strokes grow by a pixel to the left and to the top.
    """
    upper, lower = images[..., :-1, :], images[..., 1:, :]
    rows = torch.cat([torch.maximum(upper, lower), lower[..., -1:, :]], dim=-2)
    left, right = rows[..., :-1], rows[..., 1:]
    return torch.cat([torch.maximum(left, right), right[..., -1:]], dim=-1)


def thin(images: Tensor) -> Tensor:
    """Erode uint8 images [n, 1, h, w]: each pixel becomes the darkest of the same four."""
    return ~thicken(~images)


def distort_each_way(images: Tensor, limits: Distortion) -> dict[str, Tensor]:
    """Return uint8 images [n, 1, 28, 28], distorted in one way at a time, by that way's name.

    Each image is rotated, scaled or shifted by its own draw, uniform within the limits and the same for
    every model; strokes are thinned and thickened to the limit.
    """
    scaled = networks.scale(images)
    distorted = {}
    for way, limit in limits.model_dump(exclude={"strokes"}, exclude_defaults=True).items():
        torch.manual_seed(0)
        distorted[way] = random_affine(scaled, Distortion(**{way: limit}))
    if limits.strokes:
        distorted["thin_strokes"] = scaled.lerp(networks.scale(thin(images)), limits.strokes)
        distorted["thick_strokes"] = scaled.lerp(networks.scale(thicken(images)), limits.strokes)
    return {way: (result * 255).round().to(torch.uint8) for way, result in distorted.items()}
