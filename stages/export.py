"""Export one model to ONNX, into the model repository."""

import json

import onnx
import torch

from stages import artifacts, command, dataset, networks, params, repository
from stages.networks import Classifier
from stages.params import Params

OPSET, IR_VERSION = 18, 8  # both of ONNX 1.13, of December 2022: every runtime of the last two years reads them
TORCH_VERSION = torch.__version__.split("+")[0]  # without the name of the build for a CPU or a CUDA version


def main(model: str) -> None:
    """Write MODEL's folder in the model repository."""
    parameters = params.load(model)
    network = networks.load(artifacts.weights(model), parameters.networks[model], len(parameters.data.classes))
    repository.write(model, to_onnx(Classifier(network), describe(model, parameters)), parameters.data.classes)


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
    onnx_model.ir_version = IR_VERSION
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
