import numpy as np
import pytest
import torch

from stages import artifacts, dataset, idx, params
from stages.errors import UserError
from tests.conftest import digests

IMAGES = artifacts.DATA / artifacts.TEST_IMAGES
LABELS = artifacts.DATA / artifacts.TEST_LABELS


@pytest.fixture
def accept(change):
    """Declare the files as they are now to be the data set."""

    def declare():
        change({"data.sha256": digests(artifacts.DATA)})
        return params.load().data

    return declare


def test_a_written_file_is_read_back(workspace, accept):
    images = np.random.default_rng(0).integers(256, size=(3, 28, 28), dtype=np.uint8)
    idx.write(IMAGES, images)
    idx.write(LABELS, np.array([7, 0, 9]))
    split = dataset.load_test(accept())
    assert split.images.dtype == torch.uint8
    assert torch.equal(split.images, torch.from_numpy(images).unsqueeze(1))
    assert split.labels.dtype == torch.int64
    assert split.labels.tolist() == [7, 0, 9]


def test_a_missing_file_is_named(workspace):
    LABELS.unlink()
    with pytest.raises(UserError, match=f"^{LABELS} is missing; `dvc repro` makes it$"):
        dataset.load_test(params.load().data)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:500] + b"?" + content[501:]])
def test_a_damaged_file_is_named(workspace, damage):
    IMAGES.write_bytes(damage(IMAGES.read_bytes()))
    with pytest.raises(UserError, match=f"^{IMAGES} is damaged: its SHA-256 is .* `dvc repro download` restores it$"):
        dataset.load_test(params.load().data)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"not an IDX file", b"\0\0\x08\x01\0\0\0\x05abcd", b"\0\0\x0d\x01\0\0\0\1a"]
)
def test_a_file_of_another_format_is_named(workspace, accept, content):
    LABELS.write_bytes(content)
    with pytest.raises(UserError, match=f"^{LABELS} is no IDX file of bytes"):
        dataset.load_test(accept())


def test_no_images_are_no_data_set(workspace, accept):
    idx.write(IMAGES, np.zeros((0, 28, 28)))
    idx.write(LABELS, np.zeros(0))
    with pytest.raises(UserError, match=r"is \[0, 28, 28\], .* \[0\]; allowed: "):
        dataset.load_test(accept())


def test_images_of_another_size_are_refused(workspace, accept):
    idx.write(IMAGES, np.zeros((3, 32, 32)))
    with pytest.raises(UserError, match=r"is \[3, 32, 32\], .* \[297\]; allowed: \[n, 28, 28\] and \[n\] with n > 0$"):
        dataset.load_test(accept())


def test_a_label_beyond_the_classes_is_refused(workspace, change, accept):
    change({"data.classes": ["zero", "one"]})
    with pytest.raises(UserError, match="has the label 9; allowed: 0 to 1, for the 2 data.classes"):
        dataset.load_test(accept())
