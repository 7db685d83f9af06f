"""Perturbations of images: random ones as augmentation in training, and those that measure robustness."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from stages.images import scale_pixels
from stages.params import PerturbationLimits


def augment(images: Tensor, limits: PerturbationLimits) -> Tensor:
    """Apply all perturbations at once to uint8 images [n, 1, 28, 28]; return float32 [n, 1, 28, 28] from 0 to 1."""
    floats = random_strokes(images, limits.strokes) if limits.strokes else scale_pixels(images)
    return random_affine(floats, limits)


def random_affine(images: Tensor, limits: PerturbationLimits) -> Tensor:
    """Rotate, scale and shift each image, float32 [n, 1, 28, 28], by its own draws, uniform within `limits`.

    One bilinear grid sample transforms the whole batch; pixels from outside an image are black.
    """
    count, _, height, width = images.shape

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, 1, 1, device=images.device) * 2 - 1) * limit

    angle = draw(math.radians(limits.rotation))
    inverse_scale = 1 + draw(limits.scale)  # the grid maps the result to the source
    cos, sin = inverse_scale * angle.cos(), inverse_scale * angle.sin()
    # grid_sample's coordinates run from -1 to 1 across the image, so a pixel is 2 / width
    shift_x, shift_y = draw(2 * limits.shift / width), draw(2 * limits.shift / height)
    x = torch.linspace(1 / width - 1, 1 - 1 / width, width, device=images.device)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, height, device=images.device).unsqueeze(1)
    # functional.affine_grid gives the same grid, but its matrix product takes as long as the sampling itself
    grid = torch.empty(2, count, height, width, device=images.device)  # x and y separate: faster to write and to read
    torch.add(cos * x, shift_x - sin * y, out=grid[0])
    torch.add(sin * x, shift_y + cos * y, out=grid[1])
    return functional.grid_sample(images, grid.movedim(0, -1), padding_mode="zeros", align_corners=False)


def random_strokes(images: Tensor, limit: float) -> Tensor:
    """Erode or dilate each uint8 image [n, 1, h, w] by its own draw, uniform within `limit`.

    A limit of 1 allows up to the full `erode` or `dilate`. Returns float32 from 0 to 1.
    """
    change = (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * limit
    invert_mask = (change < 0) * torch.tensor(255, dtype=torch.uint8)  # x ^ 255 inverts; to erode, dilate the inverse
    extreme = dilate(images ^ invert_mask) ^ invert_mask
    return scale_pixels(images.float().lerp_(extreme.float(), change.abs()))


def dilate(images: Tensor) -> Tensor:
    """Dilate uint8 images [n, 1, h, w] by 2 x 2 pixels: each pixel becomes the maximum of itself and three neighbors.

    The neighbors are to the right and below; edge pixels are repeated.
    """
    upper, lower = images[..., :-1, :], images[..., 1:, :]
    rows = torch.cat([torch.maximum(upper, lower), lower[..., -1:, :]], dim=-2)
    left, right = rows[..., :-1], rows[..., 1:]
    return torch.cat([torch.maximum(left, right), right[..., -1:]], dim=-1)


def erode(images: Tensor) -> Tensor:
    """Erode uint8 images [n, 1, h, w] by 2 x 2 pixels: each pixel becomes the minimum of the same four."""
    return ~dilate(~images)


def perturbed_images(images: Tensor, limits: PerturbationLimits) -> dict[str, Tensor]:
    """Return uint8 images [n, 1, 28, 28] under one perturbation at a time, by the perturbation's name.

    Rotation, scale and shift are drawn for each image, uniform within the limits and the same for every model; strokes
    are eroded and dilated to the limit.
    """
    floats = scale_pixels(images)
    perturbed = {}
    for name, limit in limits.model_dump(exclude={"strokes"}, exclude_defaults=True).items():
        torch.manual_seed(0)  # the same perturbed test set for every model and seed
        perturbed[name] = random_affine(floats, PerturbationLimits(**{name: limit}))
    if limits.strokes:
        perturbed["thin_strokes"] = floats.lerp(scale_pixels(erode(images)), limits.strokes)
        perturbed["thick_strokes"] = floats.lerp(scale_pixels(dilate(images)), limits.strokes)
    return {name: (result * 255).round().to(torch.uint8) for name, result in perturbed.items()}
