import math

import numpy as np
import pytest
import torch
from PIL import Image

from stages import networks, outliers, params, train
from stages.checkpoint import Checkpoint
from stages.dataset import Split
from stages.params import Outliers, OutlierSources

CHARACTERS = "AEK?"
OUTLIERS = Outliers(fraction=0.25, weight=1.0)


def random_split(count: int) -> Split:
    """Bright squares of random sizes and places."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    for image, (top, left, size) in zip(images, torch.randint(5, 12, (count, 3)).tolist()):
        image[0, top : top + size, left : left + size] = 255
    return Split(images, torch.arange(count) % 10)


def center_of_mass(images: torch.Tensor, axis: int) -> torch.Tensor:
    ink = images.double().sum(dim=axis)
    return (ink * torch.arange(28)).sum(dim=1) / ink.sum(dim=1)


@pytest.mark.parametrize("values", [{}, {"characters": CHARACTERS}, {"quarter_turn": [1, 2]}])
def test_the_same_seed_gives_the_same_outliers_and_another_gives_others(values):
    split = random_split(30)
    first, second, other = (outliers.make_outliers(split, OutlierSources(**values), 50, seed) for seed in (1, 1, 2))
    assert (first.dtype, first.shape) == (torch.uint8, (50, 1, 28, 28))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) > 45


def test_outliers_fill_the_box_and_are_centered_by_their_mass_as_the_digits_of_mnist():
    made = outliers.make_outliers(random_split(30), OutlierSources(characters=CHARACTERS), 400, 0)[:, 0]
    sizes = torch.stack([made.any(dim=axis).sum(dim=1) for axis in (1, 2)]).amax(dim=0)
    assert sizes.max() == outliers.BOX
    assert (sizes >= outliers.BOX - 1).float().mean() > 0.9  # the others lose faint pixels
    offsets = torch.stack([center_of_mass(made, axis) for axis in (1, 2)]) - 13.5
    assert (offsets.abs() < 0.6).float().mean() > 0.9  # the others reach the image's border


def test_an_empty_image_stays_empty():
    empty = Split(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.arange(3))
    assert outliers.make_outliers(empty, OutlierSources(quarter_turn=[0, 1, 2]), 50, 0).shape == (50, 1, 28, 28)
    rng = np.random.default_rng(0)
    assert not outliers.normalize(Image.new("L", (40, 30)), rng).any()


def test_outliers_are_as_sharp_as_what_they_are_made_from():
    """A network that learns blur as the mark of an outlier gives blurred digits no label."""
    split = random_split(50)
    rng = np.random.default_rng(0)
    turned = np.stack([outliers.normalize(outliers.turn(split.images[:, 0].numpy(), rng), rng) for _ in range(200)])
    gray, ink = ((turned > 20) & (turned < 235)).sum(), (turned > 20).sum()
    assert gray / ink < 0.3


def test_a_turned_bar_lies_on_its_side():
    bar = np.zeros((1, 28, 28), np.uint8)
    bar[:, 4:24, 13:15] = 255
    lying = np.asarray(outliers.turn(bar, np.random.default_rng(0))) > 0
    assert lying.any(axis=0).sum() > 30 > 10 > lying.any(axis=1).sum()


def test_only_images_with_the_labels_of_the_sources_are_turned(monkeypatch):
    split, seen = random_split(40), []
    monkeypatch.setattr(outliers, "turn", lambda images, rng: seen.append(images) or outliers.blank_image())
    outliers.make_outliers(split, OutlierSources(quarter_turn=[2, 7]), 100, 0)
    expected = split.images[(split.labels == 2) | (split.labels == 7), 0].numpy()
    assert seen and all(np.array_equal(images, expected) for images in seen)


def test_a_batch_gets_a_fraction_of_outliers_which_count_in_neither_loss_nor_accuracy():
    drawn = torch.arange(1, 6, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 28, 28)
    recipe = params.load_params("fnn").recipes["default"]["fnn"].model_copy(update={"outliers": OUTLIERS})
    assert len(train.random_outliers(drawn, 42, 0.25)) == math.ceil(0.25 * 42)
    assert set(train.random_outliers(drawn, 42, 0.25).unique().tolist()) <= set(range(1, 6))

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    images, labels = torch.rand(40, 1, 28, 28), torch.arange(30) % 3
    sums = train.train_step(network, optimizer, images, labels, recipe, torch.float32)
    recipe = recipe.model_copy(update={"outliers": None})
    without = train.train_step(network, optimizer, images[:30], labels, recipe, torch.float32)
    torch.testing.assert_close(sums, without)


def test_a_network_that_is_trained_with_outliers_is_less_confident_on_other_ones(workspace):
    parameters = params.load_params("fnn")
    confidence = []
    for outlier_settings in (None, OUTLIERS):
        recipe = parameters.recipes["default"]["fnn"].model_copy(update={"outliers": outlier_settings})
        network, data = train.prepare_training("fnn", parameters, recipe, seed=0)
        (*_, last) = train.fit(network, data, recipe, 0, Checkpoint(workspace / "none", fingerprint=""))
        (workspace / "none").unlink()
        assert last["val_accuracy"] > 0.8
        others = outliers.make_outliers(data.validation, OutlierSources(characters="NMX&"), 200, seed=3)
        confidence.append(networks.predict_logits(network, others).softmax(dim=1).amax(dim=1).mean().item())
    assert confidence[1] < 0.75 * confidence[0]
