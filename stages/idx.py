"""IDX, the file format of MNIST, for arrays of unsigned bytes (http://yann.lecun.org/exdb/mnist/).

This module does not import PyTorch, so that a download starts at once.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import UserError

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
        pass  # the file is shorter than its header, or than its header says
    raise UserError(f"{path}: expected an IDX file of unsigned bytes, got {len(content):,} bytes that do not match")


def write_idx(path: Path, values: NDArray[np.generic]) -> None:
    """Write an array, converted to uint8, as an IDX file."""
    header = struct.pack(f">3sB{values.ndim}I", UBYTE_MAGIC, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())
