"""Tensors: the datatypes of ONNX Runtime, Triton's configuration and the protocol, and their conversion to arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import serialize_byte_tensor

from serving.errors import RequestError
from serving.limits import MAX_ELEMENTS

Array = npt.NDArray[Any]
Arrays = dict[str, Array]  # by tensor name

DTYPES: dict[str, np.dtype[Any]] = {  # the protocol's datatype: NumPy's
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),  # of str or bytes
}
NUMBER_TYPES: dict[str, set[type]] = {  # by NumPy's kind: accepted Python types
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float},
    "O": {str, bytes},
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape of a model's input or output.

    `shape` is the protocol's, including the batch dimension if the model has one, and `model_shape` the ONNX model's;
    they differ if `config.pbtxt` has a reshape. -1 is a variable length.
    """

    name: str
    datatype: str  # in the protocol's terms, such as UINT8
    shape: tuple[int, ...]
    model_shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype."""
        return DTYPES[self.datatype]


def check_shape(shape: Sequence[int], spec: TensorSpec) -> None:
    """Raise RequestError unless an input's shape is one that the model takes."""
    expected = spec.shape
    matches = all(length >= 0 if allowed == -1 else length == allowed for length, allowed in zip(shape, expected))
    if len(shape) != len(expected) or not matches:
        raise RequestError(f"{spec.name}.shape: expected {list(expected)} with -1 for any length, got {list(shape)}")


def array_from_values(values: Sequence[Any], shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the array of a flat sequence of Python values. Raises RequestError if their number or type is wrong."""
    if len(values) != math.prod(shape):
        raise RequestError(f"{spec.name}.data: expected {math.prod(shape)} values, got {len(values)}")
    try:
        return convert_values(values, spec.dtype).reshape(shape)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RequestError(f"{spec.name}.data: expected {spec.datatype} values, got others: {error}") from error


def convert_values(values: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    """Return a one-dimensional array. Raises TypeError, ValueError or ArithmeticError if a value does not fit."""
    if dtype == np.uint8:
        return np.frombuffer(bytes(values), dtype)  # three times as fast as np.array
    accepted = NUMBER_TYPES[dtype.kind]
    if not set(map(type, values)) <= accepted:
        raise TypeError(f"accepted types are {' and '.join(sorted(kind.__name__ for kind in accepted))}")
    if dtype == np.object_:  # ONNX Runtime takes and returns str, and would write bytes as b'...'
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
    with np.errstate(over="raise"):
        return np.array(values, dtype)


def array_from_bytes(data: memoryview, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the array of a tensor's bytes: little-endian, row-major; elements of BYTES follow their length, uint32.

    The array shares the memory of `data`. Raises RequestError if their number is wrong.
    """
    if spec.datatype == "BYTES":
        return array_from_values(split_elements(data, math.prod(shape), spec), shape, spec)
    size = math.prod(shape) * spec.dtype.itemsize
    if len(data) != size:
        raise RequestError(f"{spec.name}: expected {size} bytes for the shape {list(shape)}, got {len(data)}")
    try:
        array = np.frombuffer(data, spec.dtype).reshape(shape)
    except ValueError as error:  # an empty array with another dimension that is too large
        raise RequestError(f"{spec.name}.shape: expected {list(spec.shape)}, got {list(shape)}: {error}") from error
    if spec.datatype == "BOOL":
        array = array.view(np.uint8) != 0  # NumPy and ONNX Runtime expect the bytes of a boolean to be 0 or 1
    return array


def split_elements(data: memoryview, count: int, spec: TensorSpec) -> list[bytes]:
    """Return the elements of a BYTES tensor. Raises RequestError if they are too many, or not exactly the data."""
    if count > MAX_ELEMENTS:
        raise RequestError(f"{spec.name}: expected at most {MAX_ELEMENTS:,} elements, got {count:,}")
    elements = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "little")
        if len(data) < 4 + length:
            raise RequestError(
                f"{spec.name}: expected {count} elements that follow their length, got an incomplete one"
            )
        elements.append(bytes(data[4 : 4 + length]))
        data = data[4 + length :]
    if data:
        raise RequestError(f"{spec.name}: expected {count} elements, got {len(data)} bytes after them")
    return elements


def array_to_bytes(array: Array) -> bytes:
    """Return a tensor's bytes, as `array_from_bytes` takes them."""
    if array.dtype == np.object_:
        return bytes(serialize_byte_tensor(array).item()) if array.size else b""
    return array.tobytes()


def classify(array: Array, count: int, labels: Sequence[str], batched: bool) -> Array:
    """Return the largest values of each row of a batch, or of the whole array, as VALUE:INDEX or VALUE:INDEX:LABEL.

    The format is that of Triton's classification extension; the result is a BYTES tensor, [batch, count] or [count].
    """
    rows = array.reshape(len(array) if batched else 1, -1)
    width = rows.shape[1]
    order = width - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]  # of equals, the first
    number = "%f" if array.dtype.kind == "f" else "%d"
    classes = [
        [":".join([number % row[index], str(index), *labels[index : index + 1]]) for index in indices]
        for row, indices in zip(rows, order.tolist())
    ]
    result = np.array(classes, np.object_).reshape(len(rows), order.shape[1])
    return result if batched else result[0]
