"""Model configuration: Triton's `config.pbtxt`, completed from the ONNX model where it says nothing.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from onnxruntime import InferenceSession, NodeArg
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching

from serving.tensors import TensorSpec

FILE = "config.pbtxt"
MODEL_FILE = "model.onnx"  # unless the configuration names another
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"  # Triton's names for ONNX Runtime
DEFAULT_MAX_BATCH_SIZE = 4  # of a model with a variable batch dimension and without a configuration, as in Triton
SUPPORTED_FIELDS: dict[str, set[str]] = {  # by the name of protobuf's message
    "ModelConfig": {
        *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching"),
        *("instance_group", "default_model_filename", "parameters", "model_warmup"),
    },
    "ModelVersionPolicy": {"latest", "all", "specific"},
    "Latest": {"num_versions"},
    "Specific": {"versions"},
    "ModelInput": {"name", "data_type", "dims", "reshape"},
    "ModelOutput": {"name", "data_type", "dims", "reshape", "label_filename"},
    "ModelTensorReshape": {"shape"},
    "ModelDynamicBatching": {"preferred_batch_size", "max_queue_delay_microseconds"},
    "ModelInstanceGroup": {"name", "kind", "count"},
    "ModelWarmup": {"name", "batch_size", "inputs", "count"},
    "Input": {"data_type", "dims", "zero_data", "random_data"},
    "ModelParameter": {"string_value"},
}
SUPPORTED_PARAMETERS = {"intra_op_thread_count"}
SUPPORTED_KINDS = ("KIND_AUTO", "KIND_CPU")

INT64_FIELDS = {
    *("dims", "shape", "versions"),
    *("max_queue_delay_microseconds", "priority_levels", "default_priority_level"),
}
DATA_TYPES = {  # ONNX Runtime's type: Triton's in a configuration
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
DATATYPES = {  # Triton's type in a configuration: the protocol's
    value: name.removeprefix("TYPE_").replace("STRING", "BYTES") for name, value in model_config_pb2.DataType.items()
}


def parse_config(text: str, name: str) -> ModelConfig:
    """Return the configuration in a `config.pbtxt` of the model `name`.

    Raises ValueError if it is no configuration, another model's, or has a field that this server does not support.
    """
    try:
        config = text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"expected a Triton model configuration, got: {error}") from error
    if unsupported := [*unsupported_fields(config)]:
        raise ValueError(f"expected only fields that this server supports, got {', '.join(unsupported)}")
    for field, allowed in (("name", name), ("platform", PLATFORM), ("backend", BACKEND)):
        if getattr(config, field) not in ("", allowed):
            raise ValueError(f"{field}: expected {allowed!r}, got {getattr(config, field)!r}")
    if config.max_batch_size < 0:
        raise ValueError(f"max_batch_size: expected an integer >= 0, got {config.max_batch_size}")
    for group in config.instance_group:
        if group.count < 0:
            raise ValueError(f"instance_group.count: expected an integer >= 0, got {group.count}")
        kind = model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind)
        if kind not in SUPPORTED_KINDS:
            raise ValueError(f"instance_group.kind: expected {' or '.join(SUPPORTED_KINDS)}, got {kind}")
    intra_op_threads(config)
    return config


def intra_op_threads(config: ModelConfig) -> int:
    """Return the number of intra-op threads per session, 0 if not configured. Raises ValueError if it is invalid."""
    key = "intra_op_thread_count"
    text = config.parameters[key].string_value if key in config.parameters else "0"
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"parameters.{key}: expected an integer >= 0, got {text!r}")
    return int(text)


def unsupported_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields of a configuration that are set and not supported."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.name not in SUPPORTED_FIELDS.get(message.DESCRIPTOR.name, ()):
            yield path
        elif field.name == "parameters":
            yield from (f"{path}.{key}" for key in value if key not in SUPPORTED_PARAMETERS)
        elif field.name == "inputs":
            for name, each in value.items():
                yield from unsupported_fields(each, f"{path}.{name}.")
        elif field.message_type:
            for each in value if isinstance(value, Sequence) else [value]:
                yield from unsupported_fields(each, f"{path}.")


def complete_config(config: ModelConfig, name: str, session: InferenceSession) -> ModelConfig:
    """Return the configuration with everything that it leaves to the ONNX model and to defaults, as in Triton.

    Raises ValueError if the two contradict each other, or the model has a type that the protocol lacks.
    """
    completed = ModelConfig()
    completed.CopyFrom(config)
    completed.name, completed.platform, completed.backend = name, PLATFORM, BACKEND
    completed.default_model_filename = config.default_model_filename or MODEL_FILE
    inputs, outputs = session.get_inputs(), session.get_outputs()
    is_batchable = all(variable_shape(node)[:1] == [-1] for node in (*inputs, *outputs))
    if is_batchable and not (config.input or config.output or config.max_batch_size):
        completed.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        completed.dynamic_batching.SetInParent()
    complete_tensors(completed.input, inputs, completed.max_batch_size > 0)
    complete_tensors(completed.output, outputs, completed.max_batch_size > 0)
    if completed.HasField("dynamic_batching"):
        complete_batching(completed.dynamic_batching, max(completed.max_batch_size, 1))
    if not completed.instance_group:
        completed.instance_group.add(name=name, count=2)
    for number, group in enumerate(completed.instance_group):
        group.name, group.count = group.name or f"{name}_{number}", group.count or 1
        group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    if not completed.version_policy.WhichOneof("policy_choice"):
        completed.version_policy.latest.num_versions = 1
    return completed


def complete_batching(batching: ModelDynamicBatching, max_batch_size: int) -> None:
    """Complete the settings of dynamic batching. Raises ValueError if a preferred batch size exceeds the maximum."""
    for size in batching.preferred_batch_size:
        if not 1 <= size <= max_batch_size:
            path = "dynamic_batching.preferred_batch_size"
            raise ValueError(f"{path}: expected 1 <= x <= max_batch_size = {max_batch_size}, got {size}")
    if not batching.preferred_batch_size:
        batching.preferred_batch_size.append(max_batch_size)


def complete_tensors(entries: Any, nodes: Sequence[NodeArg], batched: bool) -> None:
    """Complete the inputs or the outputs of a configuration. Raises ValueError if they contradict the ONNX model."""
    by_name = {entry.name: entry for entry in entries}
    names = [node.name for node in nodes]
    if unknown := by_name.keys() - set(names):
        raise ValueError(f"expected only tensors of the ONNX model, {', '.join(names)}, got {', '.join(unknown)}")
    for node in nodes:
        entry = by_name.get(node.name) or entries.add(name=node.name)
        complete_data_type(entry, node)
        complete_dims(entry, variable_shape(node), batched)


def complete_data_type(entry: Any, node: NodeArg) -> None:
    """Set the type of an input or output. Raises ValueError if it is another one, or one that the protocol lacks."""
    if node.type not in DATA_TYPES:
        raise ValueError(f"{node.name}: expected one of {', '.join(DATA_TYPES)}, got {node.type}")
    expected, found = DATA_TYPES[node.type], model_config_pb2.DataType.Name(entry.data_type)
    if found not in ("TYPE_INVALID", expected):
        raise ValueError(f"{node.name}.data_type: expected {expected}, as in the ONNX model, got {found}")
    entry.data_type = model_config_pb2.DataType.Value(expected)


def complete_dims(entry: Any, shape: list[int], batched: bool) -> None:
    """Set the dimensions of an input or output. Raises ValueError if they contradict the ONNX model's shape."""
    if not entry.dims:
        entry.dims.extend(shape[batched:] or [1])  # Triton has no tensors without dimensions
        if not shape[batched:]:
            entry.reshape.SetInParent()
    dims, reshaped = [*entry.dims], [*model_dims(entry)]
    configured = [-1] * batched + reshaped
    matches = all(length in (-1, expected) for length, expected in zip(shape, configured))
    if len(shape) != len(configured) or not matches or (batched and shape[0] != -1):
        raise ValueError(f"{entry.name}: expected the ONNX model's shape {shape}, got {configured}")
    if dims != reshaped and (dims.count(-1) != reshaped.count(-1) or dims.count(-1) > 1):
        raise ValueError(f"{entry.name}.reshape: expected one variable length at most, as in {dims}, got {reshaped}")
    if math.prod(map(abs, dims)) != math.prod(map(abs, reshaped)):
        raise ValueError(f"{entry.name}.reshape: expected as many elements as in {dims}, got {reshaped}")


def model_dims(entry: Any) -> Sequence[int]:
    """Return the dimensions that the ONNX model has for an input or output, without the batch dimension."""
    dims: Sequence[int] = entry.reshape.shape if entry.HasField("reshape") else entry.dims
    return dims


def variable_shape(node: NodeArg) -> list[int]:
    """Return the shape of an ONNX model's input or output, with -1 for a variable length."""
    return [length if isinstance(length, int) else -1 for length in node.shape]


def tensor_specs(entries: Any, batched: bool) -> dict[str, TensorSpec]:
    """Return the inputs or outputs of a completed configuration by name."""
    batch = (-1,) * batched
    return {
        entry.name: TensorSpec(
            entry.name, DATATYPES[entry.data_type], (*batch, *entry.dims), (*batch, *model_dims(entry))
        )
        for entry in entries
    }


def select_versions(config: ModelConfig, versions: Iterable[int]) -> list[int]:
    """Return the versions that the policy of a configuration selects, in ascending order. Raises ValueError if none."""
    available = sorted(versions)
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            selected = available
        case "specific":
            selected = [version for version in available if version in policy.specific.versions]
        case _:
            selected = available[-max(policy.latest.num_versions, 1) :]
    if not selected:
        raise ValueError(f"expected a version that the version_policy selects, got {available or 'none'}")
    return selected


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration as JSON, in the form of Triton's model configuration extension."""
    content = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {key: restore_integers(key, value) for key, value in content.items()}


def restore_integers(key: str, value: Any) -> Any:
    """Return 64-bit integers as numbers: protobuf writes them as strings."""
    if isinstance(value, dict):
        return {name: restore_integers(name, each) for name, each in value.items()}
    if isinstance(value, list):
        return [restore_integers(key, each) for each in value]
    return int(value) if key in INT64_FIELDS else value
