"""Distortions of images: random ones, to train on and to test with."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from stages import networks
from stages.params import Distortion


def distort(images: Tensor, limits: Distortion) -> Tensor:
    """Distort every image, float32 [n, 1, 28, 28] from 0 to 1, in all ways at once."""
    if limits.strokes:
        images = random_strokes(images, limits.strokes)
    return random_affine(images, limits)


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
    grid_x = cos * x + (shift_x - sin * y)
    grid_y = sin * x + (shift_y + cos * y)
    grid = torch.stack([grid_x, grid_y]).movedim(0, -1)  # side by side, not interleaved: quicker to write and to read
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def random_strokes(images: Tensor, limit: float) -> Tensor:
    """Thin or thicken the strokes of every image, float32 [n, 1, 28, 28], by its own draw, uniform within `limit`.

    A limit of 1 is all the way to `thin` or `thicken`.
    """
    change = (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * limit
    sign = torch.ones_like(change).copysign(change)
    signed = images * sign  # to thin is to thicken the negative
    return signed.lerp(thicken(signed), change.abs()) * sign


def thicken(images: Tensor) -> Tensor:
    """Dilate float32 images [n, 1, h, w]: each pixel becomes the brightest of 2 x 2, itself at the upper left.

    At the edge a pixel is its own neighbour. Strokes grow by a pixel to the left and to the top.
    """
    padded = functional.pad(images, (0, 1, 0, 1), mode="replicate")
    rows = torch.maximum(padded[..., :-1, :], padded[..., 1:, :])  # far quicker than max_pool2d with one channel
    return torch.maximum(rows[..., :-1], rows[..., 1:])


def thin(images: Tensor) -> Tensor:
    """Erode float32 images [n, 1, h, w]: each pixel becomes the darkest of the same four."""
    return -thicken(-images)


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
        distorted["thin_strokes"] = scaled.lerp(thin(scaled), limits.strokes)
        distorted["thick_strokes"] = scaled.lerp(thicken(scaled), limits.strokes)
    return {way: (result * 255).round().to(torch.uint8) for way, result in distorted.items()}
