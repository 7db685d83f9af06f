"""IDX, the file format of MNIST, for arrays of unsigned bytes (http://yann.lecun.org/exdb/mnist/).

This module does not import PyTorch, so that a download starts at once.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import UserError
from stages.images import IMAGE_SHAPE
from stages.params import Data

UBYTE_MAGIC = b"\0\0\x08"  # followed by the number of dimensions, and each dimension as a big-endian uint32


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes. Raises UserError if its header does not match its length."""
    content = np.fromfile(path, dtype=np.uint8)
    try:
        magic, rank = struct.unpack_from(">3sB", content.data)
        shape = struct.unpack_from(f">{rank}I", content.data, offset=4)
        if magic == UBYTE_MAGIC:
            return content[4 + 4 * rank :].reshape(shape)
    except (struct.error, ValueError):
        pass  # the file is shorter than its header, or not as long as its header says
    raise UserError(f"{path}: expected an IDX file of unsigned bytes, got {len(content):,} bytes that do not match")


def read_labelled_images(images: Path, labels: Path, data: Data) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images, uint8 [n, 28, 28], and their labels, uint8 [n].

    Raises UserError if a file is no IDX file, if the shapes differ, or if a label has no name in `data.classes`.
    """
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.shape[1:] != IMAGE_SHAPE[1:] or classes.shape != pixels.shape[:1] or not len(classes):
        found = f"{list(pixels.shape)} and {list(classes.shape)}"
        raise UserError(f"{images.name}, {labels.name}: expected [n, 28, 28] and [n] with n > 0, got {found}")
    data.check_labels(labels.name, classes)
    return pixels, classes


def write_idx(path: Path, values: NDArray[np.generic]) -> None:
    """Write an array, converted to uint8, as an IDX file."""
    header = struct.pack(f">3sB{values.ndim}I", UBYTE_MAGIC, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())
