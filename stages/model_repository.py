"""The model repository: a folder for each exported model, in Triton's layout."""

import onnx
from onnx import ModelProto

from stages import artifacts

TRITON_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 1024
input [
  {{ name: "image", data_type: TYPE_UINT8, dims: [ 1, 28, 28 ] }}
]
output [
  {{ name: "label", data_type: TYPE_INT64, dims: [ 1 ], reshape: {{ shape: [ ] }} }},
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ {classes} ], label_filename: "{labels}" }}
]

# Dynamic batching without a queue delay: only requests that already wait for an instance share a batch. Batches of more
# than 32 images have no higher throughput.
dynamic_batching {{
  preferred_batch_size: [ 32 ]
}}

# Two single-threaded instances have a higher throughput than one of two threads. Without a kind, Triton creates them on
# every GPU, or on the CPU if there is none.
instance_group [
  {{ count: 2 }}
]
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
"""


def read_metadata(model: ModelProto) -> dict[str, str]:
    """Return the model's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def write_model(name: str, model: ModelProto, classes: list[str]) -> None:
    """Write a model's folder: the ONNX file, Triton's configuration, the class names, and the SHA-256 of each file.

    Raises onnx.checker.ValidationError if the model is invalid.
    """
    model.graph.ClearField("value_info")  # with the symbolic batch size; tract cannot unify it with a fixed one
    onnx_file, config, labels = files = (artifacts.onnx(name), artifacts.triton_config(name), artifacts.labels(name))
    with artifacts.atomic_write(onnx_file) as path:
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)
    artifacts.write_text(config, TRITON_CONFIG.format(name=name, classes=len(classes), labels=labels.name))
    artifacts.write_text(labels, "".join(f"{label}\n" for label in classes))
    checksums = artifacts.checksums(name)
    lines = (f"{artifacts.sha256_digest(file)}  {file.relative_to(checksums.parent).as_posix()}\n" for file in files)
    artifacts.write_text(checksums, "".join(lines))
    print(f"{onnx_file}: {onnx_file.stat().st_size:,} bytes")
