"""Export one model to ONNX and write its folder in the model repository."""

import json

import onnx
import torch

from stages import artifacts, command, model_repository, networks, params
from stages.images import IMAGE_SHAPE
from stages.networks import Classifier
from stages.params import Params

OPSET, IR_VERSION = 18, 8  # of ONNX 1.13 (December 2022), which ONNX Runtime 1.15 and newer load
TORCH_VERSION = torch.__version__.split("+")[0]  # without the suffix of a CPU or CUDA build


def main(model: str) -> None:
    """Write MODEL's folder in the model repository."""
    parameters = params.load_params(model)
    network = networks.load_network(artifacts.weights(model), parameters.networks[model], len(parameters.data.classes))
    max_entropy = artifacts.read_json(artifacts.calibration(model))["max_entropy"]
    onnx_model = export_onnx(Classifier(network), onnx_metadata(model, parameters, max_entropy))
    model_repository.write_model(model, onnx_model, parameters.data.classes)


def export_onnx(classifier: Classifier, metadata: dict[str, str]) -> onnx.ModelProto:
    """Export to ONNX with a dynamic batch size.

    The exporter's annotations are removed, because they hold stack traces and file paths.
    """
    program = torch.onnx.export(
        classifier.eval(),
        (torch.zeros(2, *IMAGE_SHAPE, dtype=torch.uint8),),
        input_names=["image"],
        output_names=["label", "probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # it is, if dynamo=True
    onnx_model = program.model_proto
    graph = onnx_model.graph
    for part in (graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        if node.op_type == "Reshape":
            node.ClearField("attribute")  # allowzero, which no shape here needs and onnx2torch does not support
    graph.name = metadata["model_name"]
    onnx_model.ir_version = IR_VERSION
    onnx_model.producer_version = TORCH_VERSION
    onnx.helper.set_model_props(onnx_model, metadata)
    return onnx_model


def onnx_metadata(model: str, parameters: Params, max_entropy: float) -> dict[str, str]:
    """Return the ONNX metadata_props: the classes, inputs and outputs, the license, the data set and the versions.

    An image whose probabilities have an entropy above `max_entropy`, in nats, should get no label.
    """
    return {
        "model_name": model,
        "classes": json.dumps(parameters.data.classes),
        "input": "image: uint8 [batch, 1, 28, 28], raw pixels 0 to 255, light on dark",
        "outputs": "label: int64 [batch], an index into classes; probabilities: float32 [batch, classes]",
        "max_entropy": str(max_entropy),
        "license": parameters.license,
        "dataset": parameters.data.name,
        "dataset_sha256": json.dumps(parameters.data.sha256),
        "frameworks": json.dumps({"torch": TORCH_VERSION, "onnx": onnx.__version__}),
    }


if __name__ == "__main__":
    command.run(main, "model")
