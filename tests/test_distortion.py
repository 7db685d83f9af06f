import pytest
import torch
from scipy import ndimage

from stages.distortion import distort, distort_each_way, random_affine, random_strokes, thicken, thin
from stages.params import Distortion


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def spot(row: int, column: int, count: int = 200) -> torch.Tensor:
    """Black images with one bright spot of 3 x 3 pixels around a place."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
    return images


def noise(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)


def centres(images: torch.Tensor) -> torch.Tensor:
    """The centres of mass, [n, 2], as row and column relative to the image's middle."""
    places = torch.arange(28.0) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([(images.sum(3)[:, 0] @ places) / mass, (images.sum(2)[:, 0] @ places) / mass], dim=1)


def test_without_limits_nothing_changes():
    images = noise(4)
    torch.testing.assert_close(distort(images, Distortion()), images / 255, atol=1e-5, rtol=0)


def test_shifts_are_in_pixels_and_fill_their_limits():
    moved = centres(random_affine(spot(14, 14), Distortion(shift=3.0))) - centres(spot(14, 14))
    assert 2.7 < moved.abs().max() <= 3.01


def test_rotation_is_in_degrees_about_the_middle():
    before, after = centres(spot(14, 22)), centres(random_affine(spot(14, 22), Distortion(rotation=30.0)))
    angles = torch.atan2(after[:, 0], after[:, 1]) - torch.atan2(before[:, 0], before[:, 1])
    assert 28 < angles.rad2deg().abs().max() <= 30.5
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=0.1, rtol=0)


def test_scaling_moves_along_the_radius():
    radii = centres(random_affine(spot(14, 22), Distortion(scale=0.2)))[:, 1] / 8.5
    assert 1 / 1.21 <= radii.min() < 0.87
    assert 1.15 < radii.max() <= 1 / 0.79


def test_every_image_gets_a_draw_of_its_own():
    limits = Distortion(rotation=12.0, scale=0.1, shift=1.5, strokes=1.0)
    distorted = distort(noise(1).expand(2, 1, 28, 28), limits)
    assert not torch.equal(distorted[0], distorted[1])


def test_thin_and_thick_strokes_are_an_erosion_and_a_dilation():
    images = noise(3)
    window = (1, 1, 2, 2)
    dilated = ndimage.maximum_filter(images.numpy(), window, origin=(0, 0, -1, -1), mode="nearest")
    eroded = ndimage.minimum_filter(images.numpy(), window, origin=(0, 0, -1, -1), mode="nearest")
    assert torch.equal(thicken(images), torch.from_numpy(dilated))
    assert torch.equal(thin(images), torch.from_numpy(eroded))


def test_random_strokes_lie_between_thin_and_thick_and_come_near_both():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[:, :, 10:14, 10:14] = 255
    masses = random_strokes(image.expand(500, 1, 28, 28), 1.0).sum(dim=(1, 2, 3))
    assert 9 <= masses.min() < 9.2
    assert 24.8 < masses.max() <= 25
    assert 0.4 < (masses < 16).float().mean() < 0.6


def test_strokes_change_within_their_limit():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[:, :, 10:14, 10:14] = 255
    masses = random_strokes(image.expand(500, 1, 28, 28), 0.5).sum(dim=(1, 2, 3))
    assert 12.5 <= masses.min() < masses.max() <= 20.5


def test_distorted_images_are_pixels_that_show_the_distortion():
    images = torch.zeros(50, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 12:16, 12:16] = 200
    distorted = distort_each_way(images, Distortion(shift=3, strokes=1))
    assert list(distorted) == ["shift", "thin_strokes", "thick_strokes"]
    assert {(result.dtype, result.shape) for result in distorted.values()} == {(torch.uint8, images.shape)}
    assert [int((distorted[name][0] == 200).sum()) for name in ("thin_strokes", "thick_strokes")] == [9, 25]
    assert len(distorted["shift"].unique(dim=0)) == 50
    assert distorted["shift"].sum().item() == pytest.approx(images.sum().item(), rel=0.01)


def test_one_ways_draws_do_not_depend_on_the_other_ways():
    images = noise(5)
    alone = distort_each_way(images, Distortion(shift=3))
    among_others = distort_each_way(images, Distortion(rotation=15, shift=3, strokes=1))
    assert list(alone) == ["shift"]
    assert torch.equal(alone["shift"], among_others["shift"])
