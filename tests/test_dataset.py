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
    """A function that sets data.sha256 to the digests of the present files, and returns the data's parameters."""

    def set_digests():
        change({"data.sha256": digests(artifacts.DATA)})
        return params.load_params().data

    return set_digests


def test_a_written_idx_file_is_read_back(workspace, accept):
    images = np.random.default_rng(0).integers(256, size=(3, 28, 28), dtype=np.uint8)
    idx.write_idx(IMAGES, images)
    idx.write_idx(LABELS, np.array([7, 0, 9]))
    split = dataset.load_test_set(accept())
    assert split.images.dtype == torch.uint8
    assert torch.equal(split.images, torch.from_numpy(images).unsqueeze(1))
    assert split.labels.dtype == torch.int64
    assert split.labels.tolist() == [7, 0, 9]


def test_a_missing_file_is_named(workspace):
    LABELS.unlink()
    with pytest.raises(UserError, match=f"^{LABELS}: expected a file, got none; `dvc repro` writes it$"):
        dataset.load_test_set(params.load_params().data)


@pytest.mark.parametrize("alter", [lambda content: content[:-1], lambda content: content[:500] + b"?" + content[501:]])
def test_an_altered_file_is_named(workspace, alter):
    IMAGES.write_bytes(alter(IMAGES.read_bytes()))
    with pytest.raises(
        UserError, match=f"^{IMAGES}: expected the SHA-256 .*, got .*; `dvc repro download` restores the file$"
    ):
        dataset.load_test_set(params.load_params().data)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"not an IDX file", b"\0\0\x08\x01\0\0\0\x05abcd", b"\0\0\x0d\x01\0\0\0\1a"]
)
def test_a_file_of_another_format_is_named(workspace, accept, content):
    LABELS.write_bytes(content)
    with pytest.raises(UserError, match=f"^{LABELS}: expected an IDX file of unsigned bytes, got {len(content)} bytes"):
        dataset.load_test_set(accept())


def test_a_data_set_without_images_is_a_user_error(workspace, accept):
    idx.write_idx(IMAGES, np.zeros((0, 28, 28)))
    idx.write_idx(LABELS, np.zeros(0))
    with pytest.raises(UserError, match=r"expected \[n, 28, 28\] and \[n\] with n > 0, got \[0, 28, 28\] and \[0\]$"):
        dataset.load_test_set(accept())


def test_images_of_another_size_are_a_user_error(workspace, accept):
    idx.write_idx(IMAGES, np.zeros((3, 32, 32)))
    with pytest.raises(UserError, match=r"expected \[n, 28, 28\] and \[n\] .*, got \[3, 32, 32\] and \[297\]$"):
        dataset.load_test_set(accept())


def test_a_label_without_a_class_is_a_user_error(workspace, change, accept):
    change({"data.classes": ["zero", "one"]})
    with pytest.raises(UserError, match="-labels-idx1-ubyte: expected labels from 0 to 1, as data.classes .*, got 9$"):
        dataset.load_test_set(accept())
