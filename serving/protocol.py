"""The Open Inference Protocol's messages: requests into arrays, arrays into responses.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension, in which tensors follow
the JSON as raw bytes, little-endian and row by row.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving.errors import RequestError
from serving.models import Arrays, Model, Tensor

JSON_LENGTH = "Inference-Header-Content-Length"  # the header that says where the JSON ends and the bytes begin
LISTS = 100_000  # arrays and objects that a request's JSON may hold: millions would hold up everyone
REQUIRED = object()
JSON_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
JSON_TYPES = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}  # what becomes which of numpy's kinds


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    identity: str | None
    inputs: Arrays
    outputs: dict[str, bool]  # the names of the outputs, and whether to send them as bytes
    batch: int


def metadata(model: Model) -> dict[str, Any]:
    """Describe a model."""

    def describe(tensors: dict[str, Tensor]) -> list[dict]:
        return [{"name": it.name, "datatype": it.datatype, "shape": list(it.shape)} for it in tensors.values()]

    inputs, outputs = describe(model.inputs), describe(model.outputs)
    platform = "onnxruntime_onnx"  # as Triton calls it
    return {"name": model.name, "versions": [model.version], "platform": platform, "inputs": inputs, "outputs": outputs}


def read(body: bytes, json_length: int | None, model: Model, max_batch: int) -> Request:
    """Read a request. Raises RequestError if the model cannot answer it."""
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise RequestError(f"{JSON_LENGTH} is {json_length}; the body has {len(body)} bytes")
    if body.count(b"[", 0, json_length) + body.count(b"{", 0, json_length) > LISTS:
        raise RequestError(f"the request has too many arrays; allowed: {LISTS:,}. Flat data need few")
    try:
        message = orjson.loads(memoryview(body)[:json_length])
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    identity = field(message, "id", str, None)
    outputs = read_outputs(message, model)
    inputs = {}
    tail = memoryview(body)[json_length:]
    for given in field(message, "inputs", list):
        tensor = named(model.inputs, given)
        if tensor.name in inputs:
            raise RequestError(f"the input {tensor.name} is given twice")
        inputs[tensor.name], tail = read_input(given, tensor, tail, max_batch)
    for name in model.inputs.keys() - inputs.keys():
        raise RequestError(f"the input {name} is missing")
    if tail:
        raise RequestError(f"{len(tail)} bytes follow the inputs")
    batches = {len(array) for array in inputs.values()}
    if len(batches) > 1:
        raise RequestError(f"the inputs have batches of {sorted(batches)}; allowed: the same for all")
    return Request(identity, inputs, outputs, *batches)


def read_outputs(message: Any, model: Model) -> dict[str, bool]:
    """Return the outputs that are asked for, else all, and whether each is wanted as bytes."""
    as_bytes = parameter(message, "binary_data_output", bool, False)
    asked = field(message, "outputs", list, None)
    if not asked:
        return dict.fromkeys(model.outputs, as_bytes)
    for each in asked:
        if parameter(each, "classification", int, 0):
            raise RequestError("'classification' is not known here; allowed: binary_data")
    return {named(model.outputs, each).name: parameter(each, "binary_data", bool, as_bytes) for each in asked}


def read_input(message: Any, tensor: Tensor, tail: memoryview, max_batch: int) -> tuple[np.ndarray, memoryview]:
    """Return an input's array, and what it leaves of the bytes."""
    datatype = field(message, "datatype", str)
    if datatype != tensor.datatype:
        raise RequestError(f"{tensor.name} has the datatype {datatype}; allowed: {tensor.datatype}")
    shape = field(message, "shape", list)
    if len(shape) != len(tensor.shape) or not all(map(fits, shape, tensor.shape)):
        raise RequestError(f"{tensor.name} has another shape; allowed: {list(tensor.shape)}, -1 being 1 or more")
    if shape[0] > max_batch:
        raise RequestError(f"{tensor.name} has a batch of {shape[0]}; allowed: 1 to {max_batch}")
    size = parameter(message, "binary_data_size", int, None)
    if size is None:
        return from_json(field(message, "data", list), shape, tensor), tail
    expected = math.prod(shape) * tensor.dtype.itemsize
    if size != expected:
        raise RequestError(f"{tensor.name} has a binary_data_size of {size}; its shape needs {expected}")
    if size > len(tail):
        raise RequestError(f"{tensor.name} needs {size} bytes behind the JSON; there are {len(tail)}")
    array = np.frombuffer(tail[:size], tensor.dtype).reshape(shape)
    if tensor.dtype == np.bool_:
        array = array.view(np.uint8) != 0  # what numpy, and the runtime, expect to be 0 or 1
    return array, tail[size:]


def fits(length: Any, allowed: int) -> bool:
    return type(length) is int and (length > 0 if allowed == -1 else length == allowed)


def from_json(data: list, shape: list[int], tensor: Tensor) -> np.ndarray:
    """Return the array of data that are flat, or nested as the shape says."""
    if len(data) > math.prod(shape):
        raise RequestError(f"{tensor.name} has more values than its shape {shape} needs")
    for length in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if any(type(row) is not list or len(row) != length for row in data):
            raise RequestError(f"the data of {tensor.name} are not nested as the shape {shape}")
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise RequestError(f"{tensor.name} has {len(data)} values; its shape {shape} needs {math.prod(shape)}")
    try:
        return numbers(data, tensor.dtype).reshape(shape)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RequestError(f"the data of {tensor.name} are not all {tensor.datatype}: {error}") from error


def numbers(data: list, dtype: np.dtype) -> np.ndarray:
    """Return an array of these numbers. Raises TypeError, ValueError or ArithmeticError if they are no such type's."""
    if dtype == np.uint8:
        return np.frombuffer(bytes(data), dtype)  # three times as fast as np.array
    if not set(map(type, data)) <= JSON_TYPES[dtype.kind]:
        raise TypeError(f"allowed: {' and '.join(sorted(it.__name__ for it in JSON_TYPES[dtype.kind]))}")
    with np.errstate(over="raise"):
        return np.array(data, dtype)


def write(model: Model, request: Request, arrays: Arrays) -> tuple[bytes, int | None]:
    """Return the response, and how long its JSON is if bytes follow it."""
    outputs, tail = [], []
    for name, as_bytes in request.outputs.items():
        array = arrays[name]
        output = {"name": name, "datatype": model.outputs[name].datatype, "shape": array.shape}
        if as_bytes:
            tail.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = array.reshape(-1)
        outputs.append(output)
    message = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.identity is not None:
        message["id"] = request.identity
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def named(tensors: dict[str, Tensor], message: Any) -> Tensor:
    """Return the tensor that an input or an output of a request names."""
    name = field(message, "name", str)
    if name not in tensors:
        raise RequestError(f"there is no tensor {name!r}; allowed: {', '.join(tensors)}")
    return tensors[name]


def parameter(message: Any, name: str, kind: type, default: Any) -> Any:
    """Return one of an object's parameters, of this type or the default."""
    parameters = field(message, "parameters", dict, None)
    return field(parameters, name, kind, default) if parameters else default


def field(message: Any, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """Return what an object has under a name, of this type or the default."""
    if type(message) is not dict:
        raise RequestError(f"{JSON_NAMES[type(message)]} stands where an object with {name!r} is expected")
    value = message.get(name, default)
    if value is REQUIRED:
        raise RequestError(f"{name!r} is missing")
    if type(value) is not kind and value is not default:
        raise RequestError(f"{name!r} is {JSON_NAMES[type(value)]}; allowed: {JSON_NAMES[kind]}")
    return value
