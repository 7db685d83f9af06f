"""The model repository: a folder for each exported model, laid out as Triton and KServe read it."""

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
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ {classes} ], label_filename: "{class_names}" }}
]

# Requests that wait for an instance are answered together; none waits for others to come.
dynamic_batching {{ }}

# Two batches at once on one thread each, instead of one on two; on every GPU, or else on the CPU.
instance_group [
  {{ count: 2 }}
]
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
"""


def metadata(model: ModelProto) -> dict[str, str]:
    """Return what the model says of itself in its metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def write(name: str, model: ModelProto, classes: list[str]) -> None:
    """Write a model's folder: ONNX file, Triton's configuration, the names of the classes, and the SHA-256 of each.

    Raises onnx.checker.ValidationError if the model is not valid.
    """
    files = (artifacts.onnx(name), artifacts.triton_config(name), artifacts.class_names(name))
    onnx_file, config, class_names = files
    with artifacts.replacing(onnx_file) as path:
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)
    artifacts.write_text(config, TRITON_CONFIG.format(name=name, classes=len(classes), class_names=class_names.name))
    artifacts.write_text(class_names, "".join(f"{label}\n" for label in classes))
    checksums = artifacts.checksums(name)
    lines = (f"{artifacts.sha256(file)}  {file.relative_to(checksums.parent)}\n" for file in files)
    artifacts.write_text(checksums, "".join(lines))
    print(f"{onnx_file}: {onnx_file.stat().st_size:,} bytes")
