"""Inference requests, whether sent over HTTP or gRPC: validation, execution, requested outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.batching import Batcher
from serving.errors import RequestError
from serving.models import Model
from serving.tensors import Array, Arrays, TensorSpec, check_shape, classify

SHARED_MEMORY = "shared_memory_region"
Parameters = Mapping[str, object]


@dataclass(frozen=True)
class RequestedOutput:
    """How to send an output."""

    binary: bool = False  # as bytes after the JSON; gRPC ignores it
    class_count: int = 0  # most probable classes to send instead of the values, if above 0


@dataclass(frozen=True)
class InferenceRequest:
    """A parsed and valid inference request."""

    id: str
    inputs: Arrays
    outputs: dict[str, RequestedOutput]  # by name


def find_input(model: Model, name: str, found: Arrays) -> TensorSpec:
    """Return the specification of a request's input. Raises RequestError if it is unknown, or was `found` before."""
    if name not in model.inputs:
        raise RequestError(f"input: expected one of {', '.join(model.inputs)}, got {name!r}")
    if name in found:
        raise RequestError(f"inputs: expected {name} once, got it twice")
    return model.inputs[name]


def check_input(model: Model, spec: TensorSpec, datatype: str, shape: list[int], parameters: Parameters) -> None:
    """Raise RequestError unless the model takes this datatype and shape, and the data are in the request."""
    if datatype != spec.datatype:
        raise RequestError(f"{spec.name}.datatype: expected {spec.datatype}, got {datatype!r}")
    check_shape(shape, spec)
    if model.batched and not 1 <= shape[0] <= model.config.max_batch_size:
        raise RequestError(
            f"{spec.name}.shape: expected a batch size from 1 to {model.config.max_batch_size}, got {shape[0]}"
        )
    refuse_shared_memory(spec.name, parameters)


def requested_outputs(
    model: Model, requested: Sequence[tuple[str, Parameters]], binary: bool
) -> dict[str, RequestedOutput]:
    """Return the requested outputs by name, all if none is named; of equal names, the first counts.

    `requested` are names and parameters. Raises RequestError if one is invalid.
    """
    if not requested:
        return dict.fromkeys(model.outputs, RequestedOutput(binary))
    return {name: requested_output(model, name, parameters, binary) for name, parameters in reversed(requested)}


def requested_output(model: Model, name: str, parameters: Parameters, binary: bool) -> RequestedOutput:
    """Return how to send an output; `binary` unless its parameters say otherwise. Raises RequestError if invalid."""
    if name not in model.outputs:
        raise RequestError(f"output: expected one of {', '.join(model.outputs)}, got {name!r}")
    refuse_shared_memory(name, parameters)
    as_binary, count = parameters.get("binary_data", binary), parameters.get("classification", 0)
    if type(as_binary) is not bool:
        raise RequestError(f"{name}.binary_data: expected a boolean, got {as_binary!r}")
    if type(count) is not int or count < 0:
        raise RequestError(f"{name}.classification: expected an integer >= 0, got {count!r}")
    if count and model.outputs[name].datatype == "BYTES":
        raise RequestError(f"{name}.classification: expected an output of numbers, got BYTES")
    return RequestedOutput(as_binary, count)


def refuse_shared_memory(name: str, parameters: Parameters) -> None:
    """Raise RequestError if a tensor's data lie in a shared-memory region."""
    if SHARED_MEMORY in parameters:
        raise RequestError(f"{name}: expected data in the request, got {SHARED_MEMORY}; this server has none")


async def infer(batcher: Batcher, request: InferenceRequest) -> dict[str, tuple[str, Array]]:
    """Return datatype and array of each requested output, in the model's order.

    Raises RequestError if the model cannot compute them from the inputs.
    """
    model = batcher.model
    size = len(next(iter(request.inputs.values()))) if model.batched else 1
    arrays = await batcher.infer(request.inputs, size)
    outputs = {}
    for name, spec in model.outputs.items():
        if output := request.outputs.get(name):
            outputs[name] = (spec.datatype, arrays[name])
            if output.class_count:
                classes = classify(arrays[name], output.class_count, model.labels.get(name, ()), model.batched)
                outputs[name] = ("BYTES", classes)
    return outputs
