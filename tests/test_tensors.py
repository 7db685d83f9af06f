"""Conversion of tensors: datatypes, BYTES, classification."""

import numpy as np
import pytest

from serving.errors import RequestError
from serving.tensors import (
    DTYPES,
    TensorSpec,
    array_from_bytes,
    array_from_values,
    array_to_bytes,
    classify,
)


def spec(datatype: str, length: int = 2) -> TensorSpec:
    return TensorSpec("x", datatype, (length,), (length,))


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
def test_numbers_survive_their_bytes(datatype):
    array = np.array([0, 1], DTYPES[datatype])
    np.testing.assert_array_equal(array_from_bytes(memoryview(array_to_bytes(array)), [2], spec(datatype)), array)


def test_strings_survive_their_bytes():
    array = np.array(["", "\xdf\0"], np.object_)
    restored = array_from_bytes(memoryview(array_to_bytes(array)), [2], spec("BYTES"))
    assert [*restored] == [*array]


@pytest.mark.parametrize("data", [b"\1\0\0\0a", b"\1\0\0\0a" * 3, b"\1\0\0\0a\x09\0\0\0bb", b"\1\0\0", b""])
def test_incomplete_or_additional_strings_are_refused(data):
    with pytest.raises(RequestError, match="^x"):
        array_from_bytes(memoryview(data), [2], spec("BYTES"))


def test_many_strings_are_refused():
    with pytest.raises(RequestError, match="^x: expected at most 100,000 elements, got 100,001$"):
        array_from_bytes(memoryview(bytes(4 * 100_001)), [100_001], spec("BYTES", -1))


def test_an_empty_tensor_with_a_dimension_that_is_too_large_is_refused():
    with pytest.raises(RequestError, match="^x.shape: expected "):
        array_from_bytes(memoryview(b""), [0, 2**62, 2**62], spec("FP32"))


def test_nonzero_bytes_are_true():
    assert array_from_bytes(memoryview(bytes([2, 0])), [2], spec("BOOL")).tolist() == [True, False]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [1e39, 0]),
        ("FP16", [1e5, 0]),
        ("FP32", [True, 0]),
        ("FP32", ["1", 0]),
        ("INT8", [128, 0]),
        ("UINT64", [-1, 0]),
        ("INT64", [2**63, 0]),
        ("INT32", [0.5, 0]),
        ("BOOL", [1, 0]),
        ("BYTES", [1, 0]),
        ("BYTES", [b"\xff", b""]),
        ("UINT8", [256, 0]),
        ("UINT8", [1.0, 0]),
        ("INT8", [None, 0]),
        ("INT8", [[1], 0]),
    ],
)
def test_values_that_the_datatype_lacks_are_refused(datatype, values):
    with pytest.raises(RequestError, match=f"x.data: expected {datatype} values, got others: "):
        array_from_values(values, [2], spec(datatype))


def test_floats_may_be_nan_or_infinite():
    array = array_from_values([float("nan"), float("inf")], [2], spec("FP32"))
    assert np.isnan(array[0]) and np.isinf(array[1])


@pytest.mark.parametrize(
    ("values", "count", "labels", "batched", "expected"),
    [
        ([[0.25, 0.5, 0.5]], 2, ("a", "b"), True, [["0.500000:1:b", "0.500000:2"]]),
        ([[0.25, 0.5, 0.5]], 9, (), True, [["0.500000:1", "0.500000:2", "0.250000:0"]]),
        ([[3], [4]], 1, (), True, [["3:0"], ["4:0"]]),
        ([[3, 1], [4, 5]], 3, (), False, ["5:3", "4:2", "3:0"]),
    ],
)
def test_the_largest_values_are_returned_with_index_and_label(values, count, labels, batched, expected):
    assert classify(np.array(values), count, labels, batched).tolist() == expected
