import torch

from stages.augmentation import random_affine
from stages.params import Affine

NOTHING = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}


def spot(row: int, column: int, count: int = 200) -> torch.Tensor:
    """Black images with one bright spot of 3 x 3 pixels around a place."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
    return images


def centres(images: torch.Tensor) -> torch.Tensor:
    """The centres of mass, [n, 2], as row and column relative to the image's middle."""
    places = torch.arange(28.0) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([(images.sum(3)[:, 0] @ places) / mass, (images.sum(2)[:, 0] @ places) / mass], dim=1)


def test_without_limits_nothing_changes():
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(random_affine(images, Affine(**NOTHING)), images, atol=1e-5, rtol=0)


def test_shifts_are_in_pixels_and_fill_their_limits():
    moved = centres(random_affine(spot(14, 14), Affine(**NOTHING | {"shift": 3.0}))) - centres(spot(14, 14))
    assert 2.7 < moved.abs().max() <= 3.01


def test_rotation_is_in_degrees_about_the_middle():
    before, after = centres(spot(14, 22)), centres(random_affine(spot(14, 22), Affine(**NOTHING | {"rotation": 30.0})))
    angles = torch.atan2(after[:, 0], after[:, 1]) - torch.atan2(before[:, 0], before[:, 1])
    assert 28 < angles.rad2deg().abs().max() <= 30.5
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=0.1, rtol=0)


def test_scaling_moves_along_the_radius():
    radii = centres(random_affine(spot(14, 22), Affine(**NOTHING | {"scale": 0.2})))[:, 1] / 8.5
    assert 1 / 1.21 <= radii.min() < 0.87
    assert 1.15 < radii.max() <= 1 / 0.79


def test_every_image_gets_a_draw_of_its_own():
    distorted = random_affine(spot(14, 14, count=2), Affine(rotation=12.0, scale=0.1, shear=0.15, shift=1.5))
    assert not torch.equal(distorted[0], distorted[1])
