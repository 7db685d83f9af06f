"""Export one model to ONNX, inside the folder layout of Triton's model repository."""

import json

import onnx
import torch

from stages import artifacts, command, dataset, networks, params
from stages.networks import Classifier
from stages.params import Params

OPSET = 18
TORCH_VERSION = torch.__version__.split("+")[0]  # without the name of the build for a CPU or a CUDA version

TRITON_CONFIG = """\
name: "{model}"
backend: "onnxruntime"
max_batch_size: 1024
input [
  {{ name: "image", data_type: TYPE_UINT8, dims: [ 1, 28, 28 ] }}
]
output [
  {{ name: "label", data_type: TYPE_INT64, dims: [ 1 ], reshape: {{ shape: [ ] }} }},
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ {classes} ] }}
]
dynamic_batching {{ }}
"""


def main(model: str) -> None:
    """Export MODEL as ONNX with Triton's configuration beside it."""
    parameters = params.load(model)
    classes = len(parameters.data.classes)
    network = networks.load(artifacts.weights(model), parameters.networks[model], classes)
    onnx_model = to_onnx(Classifier(network), describe(model, parameters))

    with artifacts.replacing(artifacts.onnx(model)) as path:
        path.write_bytes(onnx_model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)
    with artifacts.replacing(artifacts.triton_config(model)) as path:
        path.write_text(TRITON_CONFIG.format(model=model, classes=classes))
    print(f"{artifacts.onnx(model)}: {artifacts.onnx(model).stat().st_size:,} bytes")


def to_onnx(classifier: Classifier, metadata: dict[str, str]) -> onnx.ModelProto:
    """Translate to ONNX with a free batch size, without the exporter's remarks, which hold stack traces and paths."""
    onnx_model = torch.onnx.export(
        classifier.eval(),
        (torch.zeros(2, *dataset.IMAGE_SHAPE, dtype=torch.uint8),),
        input_names=["image"],
        output_names=["label", "probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    ).model_proto
    graph = onnx_model.graph
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.name = metadata["model_name"]
    onnx_model.producer_version = TORCH_VERSION
    onnx.helper.set_model_props(onnx_model, metadata)
    return onnx_model


def describe(model: str, parameters: Params) -> dict[str, str]:
    """Return what a stranger needs to know to use the file."""
    return {
        "model_name": model,
        "classes": json.dumps(parameters.data.classes),
        "input": "image: uint8 [batch, 1, 28, 28], raw pixels 0 to 255, light on dark",
        "outputs": "label: int64 [batch], an index into classes; probabilities: float32 [batch, classes]",
        "licence": parameters.licence,
        "dataset": parameters.data.name,
        "dataset_sha256": json.dumps(parameters.data.sha256),
        "frameworks": json.dumps({"torch": TORCH_VERSION, "onnx": onnx.__version__}),
    }


if __name__ == "__main__":
    command.run(main, "model")
