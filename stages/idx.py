"""IDX, the format of MNIST's files, for arrays of bytes; without PyTorch, so that a download starts at once."""

import struct
from pathlib import Path

import numpy as np

from stages.errors import UserError

BYTES = b"\0\0\x08"  # how an IDX file of bytes begins; its rank follows, then a big-endian uint32 a dimension


def read(path: Path) -> np.ndarray:
    """Return the array, uint8, in a file. Raises UserError if the file is not what its header says."""
    content = np.fromfile(path, dtype=np.uint8)
    try:
        magic, rank = struct.unpack_from(">3sB", content)
        shape = struct.unpack_from(f">{rank}I", content, offset=4)
        if magic == BYTES:
            return content[4 + 4 * rank :].reshape(shape)
    except (struct.error, ValueError):
        pass  # shorter than its header, or than the header says
    raise UserError(f"{path} is no IDX file of bytes: its header does not match its {len(content):,} bytes")


def write(path: Path, values: np.ndarray) -> None:
    """Write an array of uint8."""
    header = struct.pack(f">3sB{values.ndim}I", BYTES, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())
