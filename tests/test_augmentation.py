import pytest
import torch
from scipy import ndimage

from stages.augmentation import augment, dilate, erode, perturbed_images, random_affine, random_strokes
from stages.params import PerturbationLimits


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def spots(row: int, column: int) -> torch.Tensor:
    """Black float32 images, each with one white square of 3 x 3 pixels, centered at a pixel."""
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
    return images


def squares(count: int, value: int = 255) -> torch.Tensor:
    """Black uint8 images, each with one square of 4 x 4 pixels."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:14, 10:14] = value
    return images


def noise(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)


def centroids(images: torch.Tensor) -> torch.Tensor:
    """The centers of mass, [n, 2], as row and column relative to the image's center."""
    places = torch.arange(28.0) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([(images.sum(3)[:, 0] @ places) / mass, (images.sum(2)[:, 0] @ places) / mass], dim=1)


def test_limits_of_0_change_nothing():
    images = noise(4)
    torch.testing.assert_close(augment(images, PerturbationLimits()), images / 255, atol=1e-5, rtol=0)


def test_shifts_are_in_pixels_and_reach_their_limit():
    moved = centroids(random_affine(spots(14, 14), PerturbationLimits(shift=3.0))) - centroids(spots(14, 14))
    assert 2.7 < moved.abs().max() <= 3.01


def test_rotations_are_in_degrees_about_the_center_and_reach_their_limit():
    before, after = centroids(spots(14, 22)), centroids(random_affine(spots(14, 22), PerturbationLimits(rotation=30.0)))
    angles = torch.atan2(after[:, 0], after[:, 1]) - torch.atan2(before[:, 0], before[:, 1])
    assert 28 < angles.rad2deg().abs().max() <= 30.5
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), atol=0.1, rtol=0)


def test_scaling_is_about_the_center_and_reaches_its_limits():
    radii = centroids(random_affine(spots(14, 22), PerturbationLimits(scale=0.2)))[:, 1] / 8.5
    assert 1 / 1.21 <= radii.min() < 0.87
    assert 1.15 < radii.max() <= 1 / 0.79


def test_each_image_has_its_own_draws():
    limits = PerturbationLimits(rotation=12.0, scale=0.1, shift=1.5, strokes=1.0)
    augmented = augment(noise(1).expand(2, 1, 28, 28), limits)
    assert not torch.equal(augmented[0], augmented[1])


def test_erode_and_dilate_equal_scipys_filters_of_2_by_2_pixels():
    images = noise(3)
    window, origin = (1, 1, 2, 2), (0, 0, -1, -1)
    dilated = ndimage.maximum_filter(images.numpy(), window, origin=origin, mode="nearest")
    eroded = ndimage.minimum_filter(images.numpy(), window, origin=origin, mode="nearest")
    assert torch.equal(dilate(images), torch.from_numpy(dilated))
    assert torch.equal(erode(images), torch.from_numpy(eroded))


def test_random_strokes_are_uniform_from_eroded_to_dilated():
    masses = random_strokes(squares(500), 1.0).sum(dim=(1, 2, 3))
    assert 9 <= masses.min() < 9.2
    assert 24.8 < masses.max() <= 25
    assert 0.4 < (masses < 16).float().mean() < 0.6


def test_random_strokes_stay_within_their_limit():
    masses = random_strokes(squares(500), 0.5).sum(dim=(1, 2, 3))
    assert 12.5 <= masses.min() < masses.max() <= 20.5


def test_perturbed_images_are_uint8_and_show_one_perturbation_each():
    images = squares(50, value=200)
    perturbed = perturbed_images(images, PerturbationLimits(shift=3, strokes=1))
    assert list(perturbed) == ["shift", "thin_strokes", "thick_strokes"]
    assert {(result.dtype, result.shape) for result in perturbed.values()} == {(torch.uint8, images.shape)}
    assert [int((perturbed[name][0] == 200).sum()) for name in ("thin_strokes", "thick_strokes")] == [9, 25]
    assert len(perturbed["shift"].unique(dim=0)) == 50
    assert perturbed["shift"].sum().item() == pytest.approx(images.sum().item(), rel=0.01)


def test_a_perturbations_draws_do_not_depend_on_the_others():
    images = noise(5)
    alone = perturbed_images(images, PerturbationLimits(shift=3))
    among_others = perturbed_images(images, PerturbationLimits(rotation=15, shift=3, strokes=1))
    assert list(alone) == ["shift"]
    assert torch.equal(alone["shift"], among_others["shift"])
