"""JSON messages of the Open Inference Protocol: parse requests into arrays, serialize arrays into responses.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension, in which tensors follow
the JSON as raw bytes, little-endian and in row-major order.
"""

import json
import math
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving import __version__
from serving.config import PLATFORM
from serving.errors import RequestError
from serving.inference import InferenceRequest, RequestedOutput, check_input, find_input, requested_outputs
from serving.limits import MAX_JSON_ITEMS
from serving.models import Model
from serving.tensors import Array, Arrays, TensorSpec, array_from_bytes, array_from_values, array_to_bytes

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"  # length of the JSON, where binary tensors follow it
SERVER_METADATA = {
    "name": "mnist-pipeline",
    "version": __version__,
    "extensions": [
        *("classification", "model_repository", "model_configuration"),
        *("binary_tensor_data", "parameters", "statistics"),
    ],
}
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
ENCODINGS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # zlib's window bits of each content encoding
COMPRESSION_LEVEL = 1  # the fastest


def model_metadata(models: Sequence[Model]) -> dict[str, Any]:
    """Return the protocol's metadata of these versions of a model; the tensors are those of the last."""
    model = models[-1]
    return {
        "name": model.name,
        "versions": [each.version for each in models],
        "platform": PLATFORM,
        "inputs": [tensor_metadata(spec) for spec in model.inputs.values()],
        "outputs": [tensor_metadata(spec) for spec in model.outputs.values()],
    }


def tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """Return the protocol's metadata of an input or output."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def parse_request(body: bytes | bytearray, json_length: int | None, model: Model) -> InferenceRequest:
    """Parse the body of an inference request, whose first `json_length` bytes (None: all) are JSON.

    Raises RequestError if the body is invalid or does not match the model's inputs and outputs.
    """
    if json_length == 0:
        return parse_raw_request(body, model)
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise RequestError(f"{JSON_LENGTH_HEADER}: expected at most {len(body)}, the body's bytes, got {json_length}")
    message = parse_json(body, json_length)
    request_id = get_field(message, "id", str, "")
    outputs = parse_outputs(message, model)
    inputs: Arrays = {}
    binary = memoryview(body)[json_length:]
    for entry in get_field(message, "inputs", list):
        spec = find_input(model, get_field(entry, "name", str), inputs)
        inputs[spec.name], binary = parse_input(entry, model, spec, binary)
    model.check_inputs(inputs)
    if binary:
        size = len(body) - json_length
        raise RequestError(f"binary data: expected {size - len(binary)} bytes after the JSON, got {size}")
    return InferenceRequest(request_id, inputs, outputs)


def parse_raw_request(body: bytes | bytearray, model: Model) -> InferenceRequest:
    """Parse a request without JSON, whose body is the data of the model's only input, with the batch size 1.

    Raises RequestError if the model has several inputs, or one with several variable lengths.
    """
    specs = [*model.inputs.values()]
    lengths = specs[0].shape[model.batched :] if specs else ()
    if len(specs) != 1 or lengths.count(-1) > 1 or specs[0].datatype == "BYTES":
        raise RequestError("request without JSON: expected a model with one input of numbers and one variable length")
    known = math.prod(length for length in lengths if length > 0) * specs[0].dtype.itemsize
    shape = [1] * model.batched + [length if length >= 0 else len(body) // known for length in lengths]
    outputs = requested_outputs(model, [], binary=True)
    return InferenceRequest("", {specs[0].name: array_from_bytes(memoryview(body), shape, specs[0])}, outputs)


def parse_json(body: bytes | bytearray, length: int) -> Any:
    """Parse the JSON in the first `length` bytes, in which NaN and Infinity are numbers.

    Raises RequestError if it is invalid or has too many items.
    """
    items = sum(body.count(character, 0, length) for character in (b"[", b"{", b":"))
    if items > MAX_JSON_ITEMS:
        raise RequestError(
            f"request: expected at most {MAX_JSON_ITEMS:,} arrays, objects and keys, got {items:,}; send flat data"
        )
    has_nonfinite = body.find(b"NaN", 0, length) >= 0 or body.find(b"Infinity", 0, length) >= 0
    try:
        if has_nonfinite:  # Triton accepts these, which are not JSON
            message = json.loads(body[:length])
            orjson.dumps(message)  # refuses what it would not parse, either, such as half of a surrogate pair
            return message
        return orjson.loads(memoryview(body)[:length])
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"request: expected JSON, got: {error}") from error


def parse_outputs(message: Any, model: Model) -> dict[str, RequestedOutput]:
    """Return the requested outputs by name, all by default."""
    binary = get_field(get_parameters(message), "binary_data_output", bool, False)
    entries = get_field(message, "outputs", list, None) or []
    requested = [(get_field(entry, "name", str), get_parameters(entry)) for entry in entries]
    return requested_outputs(model, requested, binary)


def parse_input(entry: Any, model: Model, spec: TensorSpec, binary: memoryview) -> tuple[Array, memoryview]:
    """Return an input's array, and the binary data that remain for the inputs after it."""
    shape: list[int] = get_field(entry, "shape", list)
    if any(type(length) is not int for length in shape):
        raise RequestError(f"{spec.name}.shape: expected {list(spec.shape)}, got elements that are not integers")
    parameters = get_parameters(entry)
    check_input(model, spec, get_field(entry, "datatype", str), shape, parameters)
    size = get_field(parameters, "binary_data_size", int, None)
    if size is None:
        return array_from_json(get_field(entry, "data", list), shape, spec), binary
    if "data" in entry:
        raise RequestError(f"{spec.name}: expected data or binary_data_size, got both")
    if not 0 <= size <= len(binary):
        raise RequestError(f"{spec.name}: expected {size} bytes after the JSON, got {len(binary)}")
    return array_from_bytes(binary[:size], shape, spec), binary[size:]


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
    return array_from_values(data, shape, spec)


def serialize_response(
    model: Model, request: InferenceRequest, outputs: dict[str, tuple[str, Array]]
) -> tuple[bytes, int | None]:
    """Return the body of an inference response, and the length of its JSON if binary data follow (else None)."""
    entries, binary = [], []
    for name, (datatype, array) in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if request.outputs[name].binary:
            binary.append(array_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = array.ravel() if array.dtype != np.object_ else array.ravel().tolist()
        entries.append(entry)
    message: dict[str, Any] = {"id": request.id} if request.id else {}
    message |= {"model_name": model.name, "model_version": model.version, "outputs": entries}
    content = serialize_json(message)
    return (b"".join((content, *binary)), len(content)) if binary else (content, None)


def serialize_json(message: Any) -> bytes:
    """Return JSON, with NaN and Infinity, which JSON lacks, as Triton writes them."""
    content = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in content:  # orjson's text for these values
        return json.dumps(message, default=lambda array: array.tolist()).encode()
    return content


def decompress(content: bytes | bytearray, encoding: str, max_bytes: int) -> bytes:
    """Return the content of a compressed body. Raises RequestError if it is invalid or exceeds the limit."""
    decompressor = zlib.decompressobj(ENCODINGS[encoding])
    try:
        result = decompressor.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"body: expected {encoding}, got other data: {error}") from error
    if len(result) > max_bytes:
        raise RequestError(f"body: expected at most {max_bytes} bytes after decompression, got more", 413)
    if not decompressor.eof or decompressor.unused_data:
        raise RequestError(f"body: expected {encoding}, got an incomplete stream or data after it")
    return result


def compress(content: bytes, encoding: str) -> bytes:
    """Return compressed content."""
    compressor = zlib.compressobj(COMPRESSION_LEVEL, wbits=ENCODINGS[encoding])
    return compressor.compress(content) + compressor.flush()


def get_parameters(message: Any) -> dict[str, Any]:
    """Return an object's optional `parameters`. Raises RequestError unless their values are scalars."""
    parameters: dict[str, Any] = get_field(message, "parameters", dict, {})
    for name, value in parameters.items():
        if type(value) not in (bool, int, float, str):
            raise RequestError(
                f"parameters.{name}: expected a number, a boolean or a string, got {JSON_NAMES[type(value)]}"
            )
    return parameters


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
