"""The benchmark of reading, and the pictures that it draws."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from benchmarks import drawings, handwriting, reading
from benchmarks.handwriting import Writer
from stages.dataset import Split


@pytest.mark.parametrize(
    ("expected", "read", "outcomes"),
    [
        ("1572", "1572", {"right": 4}),
        ("1572", "1512", {"right": 3, "wrong": 1}),
        ("1572", "15?2", {"right": 3, "refused": 1}),
        ("1572", "152", {"right": 3, "wrong": 1}),
        ("1572", "15772", {"right": 4}),
        ("1572", "", {"refused": 4}),
        ("15\n72", "15\n72", {"right": 4}),
        ("15\n72", "1572", {"right": 4}),
    ],
)
def test_digits_are_counted_by_outcome_in_the_alignment_with_the_fewest_differences(expected, read, outcomes):
    assert +reading.digit_outcomes(expected, read) == Counter(outcomes)


@pytest.mark.parametrize(
    ("read", "numbers"),
    [
        (["15", "72"], {"right": 2}),
        (["15", "12"], {"right": 1, "wrong": 1}),
        (["15", "7?"], {"right": 1, "refused": 1}),
        (["1572"], {"wrong": 2}),
        ([], {"refused": 2}),
    ],
)
def test_numbers_are_counted_by_outcome(read, numbers):
    results = reading.Results()
    results.add(["15", "72"], read)
    assert +results.numbers == Counter(numbers)


@pytest.fixture
def writer(test_set) -> Writer:
    images, labels = test_set
    return Writer(np.random.default_rng(0), images, labels)


@pytest.mark.parametrize("condition", handwriting.CONDITIONS)
def test_every_condition_draws_the_numbers_that_it_states(writer, condition):
    picture = handwriting.CONDITIONS[condition](writer, 5)
    assert picture.dtype == np.uint8 and picture.ndim == 2
    assert [len(text) for text in writer.text][:1] == [2 if condition == "touching pairs" else 5]
    assert "".join(writer.text).isdecimal()


def test_touching_digits_share_ink(writer):
    apart, touching = writer.line(2), writer.line(2, touching=True)
    components = [cv2.connectedComponents((ink > 0.5).astype(np.uint8))[0] - 1 for ink in (apart, touching)]
    assert components == [2, 1]


def test_digits_that_are_apart_are_read(test_set, classifiers):
    images, labels = map(torch.tensor, test_set)
    split = Split(images[:, None], labels)
    results = reading.measure("apart", 10, split, classifiers)
    assert results.digits["right"] / results.digits.total() > 0.95
    table = reading.results_table({"apart": results})
    assert table.splitlines()[2].startswith("| apart | ")


@pytest.mark.parametrize("draw", [drawings.draw_letter, drawings.draw_shape])
def test_drawings_have_ink_and_depend_on_the_seed_only(draw):
    pictures = [draw(np.random.default_rng(seed)) for seed in (*range(30), 0)]
    assert np.array_equal(pictures[0], pictures[-1])
    assert len(np.unique(pictures, axis=0)) > 20
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((drawings.SIDE, drawings.SIDE), np.uint8)
        assert 0.005 < (picture < 128).mean() < 0.4


def test_only_drawings_with_a_label_count_as_read(monkeypatch):
    texts = iter([["7"], ["?"], [], ["?", "?3"]])
    monkeypatch.setattr(reading, "read_lines", lambda picture, classifiers: next(texts))
    assert reading.read_share(drawings.draw_shape, 4, []) == 0.5
