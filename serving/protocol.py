"""Messages of the Open Inference Protocol: parse requests into arrays, serialize arrays into responses.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension, in which tensors follow
the JSON as raw bytes, little-endian and in row-major order.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving.errors import RequestError
from serving.limits import MAX_JSON_CONTAINERS
from serving.models import Array, Arrays, Model, TensorSpec

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"  # length of the JSON, where binary tensors follow it
PLATFORM = "onnxruntime_onnx"  # Triton's name for ONNX Runtime
REQUIRED = object()  # default of a field that must be present
JSON_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
JSON_TYPES: dict[str, set[type]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float},
}  # accepted for each of NumPy's dtype kinds


@dataclass(frozen=True)
class InferenceRequest:
    """A parsed inference request."""

    id: str | None
    inputs: Arrays
    outputs: dict[str, bool]  # name of each requested output: whether to send it as binary data
    batch_size: int


def model_metadata(model: Model) -> dict[str, Any]:
    """Return the protocol's metadata of a model: name, versions, platform, inputs and outputs."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [tensor_metadata(spec) for spec in model.inputs.values()],
        "outputs": [tensor_metadata(spec) for spec in model.outputs.values()],
    }


def tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """Return the protocol's metadata of an input or output."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def parse_request(body: bytes, json_length: int | None, model: Model, max_images: int) -> InferenceRequest:
    """Parse the body of an inference request, whose first `json_length` bytes (None: all) are JSON.

    Raises RequestError if the body is invalid or does not match the model's inputs and outputs.
    """
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise RequestError(f"{JSON_LENGTH_HEADER}: expected at most {len(body)}, the body's bytes, got {json_length}")
    message = parse_json(body, json_length)
    request_id = get_field(message, "id", str, None)
    outputs = parse_outputs(message, model)
    inputs: Arrays = {}
    binary = memoryview(body)[json_length:]
    for entry in get_field(message, "inputs", list):
        spec = find_tensor(model.inputs, entry)
        if spec.name in inputs:
            raise RequestError(f"inputs: expected {spec.name} once, got it twice")
        inputs[spec.name], binary = parse_input(entry, spec, binary, max_images)
    if inputs.keys() != model.inputs.keys():
        raise RequestError(f"inputs: expected {', '.join(model.inputs)}, got {', '.join(inputs) or 'none'}")
    if binary:
        size = len(body) - json_length
        raise RequestError(f"binary data: expected {size - len(binary)} bytes after the JSON, got {size}")
    batch_sizes = {len(array) for array in inputs.values()}
    if len(batch_sizes) > 1:
        raise RequestError(f"inputs: expected one batch size, got {sorted(batch_sizes)}")
    return InferenceRequest(request_id, inputs, outputs, *batch_sizes)


def parse_json(body: bytes, length: int) -> Any:
    """Parse the JSON in the first `length` bytes. Raises RequestError if it is invalid or has too many containers."""
    containers = body.count(b"[", 0, length) + body.count(b"{", 0, length)
    if containers > MAX_JSON_CONTAINERS:
        raise RequestError(
            f"request: expected at most {MAX_JSON_CONTAINERS:,} arrays and objects, got {containers:,}; send flat data"
        )
    try:
        return orjson.loads(memoryview(body)[:length])
    except orjson.JSONDecodeError as error:
        raise RequestError(f"request: expected JSON, got: {error}") from error


def parse_outputs(message: Any, model: Model) -> dict[str, bool]:
    """Return the names of the requested outputs (all by default), and whether to send each as binary data."""
    binary_by_default = get_parameter(message, "binary_data_output", bool, False)
    entries = get_field(message, "outputs", list, None)
    if not entries:
        return dict.fromkeys(model.outputs, binary_by_default)
    for entry in entries:
        if get_parameter(entry, "classification", int, 0):
            raise RequestError("outputs: expected no 'classification', got one; the extension is not supported")
    return {
        find_tensor(model.outputs, entry).name: get_parameter(entry, "binary_data", bool, binary_by_default)
        for entry in entries
    }


def parse_input(entry: Any, spec: TensorSpec, binary: memoryview, max_images: int) -> tuple[Array, memoryview]:
    """Return an input's array, and the binary data that remain for the inputs after it."""
    datatype = get_field(entry, "datatype", str)
    if datatype != spec.datatype:
        raise RequestError(f"{spec.name}.datatype: expected {spec.datatype}, got {datatype!r}")
    shape = parse_shape(entry, spec, max_images)
    size = get_parameter(entry, "binary_data_size", int, None)
    if size is None:
        return array_from_json(get_field(entry, "data", list), shape, spec), binary
    expected = math.prod(shape) * spec.dtype.itemsize
    if size != expected:
        raise RequestError(f"{spec.name}.binary_data_size: expected {expected}, got {size}")
    if size > len(binary):
        raise RequestError(f"{spec.name}: expected {size} bytes after the JSON, got {len(binary)}")
    array = np.frombuffer(binary[:size], spec.dtype).reshape(shape)
    if spec.dtype == np.bool_:
        array = array.view(np.uint8) != 0  # NumPy and ONNX Runtime expect the bytes of a boolean to be 0 or 1
    return array, binary[size:]


def parse_shape(entry: Any, spec: TensorSpec, max_images: int) -> list[int]:
    """Return an input's shape. Raises RequestError if the model cannot take it, or the batch is too large."""
    shape: list[int] = get_field(entry, "shape", list)
    if any(type(length) is not int for length in shape):
        raise RequestError(f"{spec.name}.shape: expected {list(spec.shape)}, got elements that are not integers")
    matches = all(length > 0 if allowed == -1 else length == allowed for length, allowed in zip(shape, spec.shape))
    if len(shape) != len(spec.shape) or not matches:
        raise RequestError(f"{spec.name}.shape: expected {list(spec.shape)} with -1 for any length >= 1, got {shape}")
    if shape[0] > max_images:
        raise RequestError(f"{spec.name}.shape: expected a batch size of at most {max_images}, got {shape[0]}")
    return shape


def array_from_json(data: list[Any], shape: list[int], spec: TensorSpec) -> Array:
    """Return the array of JSON data that are flat, or nested like the shape."""
    size = math.prod(shape)
    if len(data) > size:
        raise RequestError(f"{spec.name}.data: expected {size} values, got {len(data)} or more")
    for length in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if any(type(row) is not list or len(row) != length for row in data):
            raise RequestError(f"{spec.name}.data: expected flat data or rows nested like {shape}, got other rows")
        data = list(chain.from_iterable(data))
    if len(data) != size:
        raise RequestError(f"{spec.name}.data: expected {size} values, got {len(data)}")
    try:
        return convert_numbers(data, spec.dtype).reshape(shape)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RequestError(f"{spec.name}.data: expected {spec.datatype} values, got others: {error}") from error


def convert_numbers(data: list[Any], dtype: np.dtype[Any]) -> Array:
    """Return a one-dimensional array. Raises TypeError, ValueError or ArithmeticError if a value does not fit."""
    if dtype == np.uint8:
        return np.frombuffer(bytes(data), dtype)  # three times as fast as np.array
    accepted = JSON_TYPES[dtype.kind]
    if not set(map(type, data)) <= accepted:
        raise TypeError(f"accepted JSON types are {' and '.join(sorted(kind.__name__ for kind in accepted))}")
    with np.errstate(over="raise"):
        return np.array(data, dtype)


def serialize_response(model: Model, request: InferenceRequest, arrays: Arrays) -> tuple[bytes, int | None]:
    """Return the body of an inference response, and the length of its JSON if binary data follow (else None)."""
    outputs, binary = [], []
    for name, as_binary in request.outputs.items():
        array = arrays[name]
        output: dict[str, Any] = {"name": name, "datatype": model.outputs[name].datatype, "shape": array.shape}
        if as_binary:
            binary.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = array.reshape(-1)
        outputs.append(output)
    message: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id is not None:
        message["id"] = request.id
    content = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((content, *binary)), len(content)) if binary else (content, None)


def find_tensor(specs: dict[str, TensorSpec], entry: Any) -> TensorSpec:
    """Return the specification of the tensor that an input or output of a request names."""
    name = get_field(entry, "name", str)
    if name not in specs:
        raise RequestError(f"tensor name: expected one of {', '.join(specs)}, got {name!r}")
    return specs[name]


def get_parameter(message: Any, name: str, kind: type, default: Any) -> Any:
    """Return a value of an object's optional `parameters`, of this type, or the default."""
    parameters = get_field(message, "parameters", dict, None)
    return get_field(parameters, name, kind, default) if parameters else default


def get_field(message: Any, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """Return a field of a JSON object, of this type, or the default. Raises RequestError if it is missing or other."""
    if type(message) is not dict:
        raise RequestError(f"request: expected an object with {name!r}, got {JSON_NAMES[type(message)]}")
    value = message.get(name, default)
    if value is REQUIRED:
        raise RequestError(f"{name}: expected {JSON_NAMES[kind]}, got nothing")
    if type(value) is not kind and value is not default:
        raise RequestError(f"{name}: expected {JSON_NAMES[kind]}, got {JSON_NAMES[type(value)]}")
    return value
