"""Quantize one exported model to int8: a quarter of the size, the same inputs and outputs."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

from stages import artifacts, command, dataset, params, repository

BATCH_SIZE = 100
QUANTIZED = ["Conv", "Gemm", "MaxPool", "Relu", "Reshape"]  # not the softmax: what it gives has to sum to 1


def main(model: str) -> None:
    """Write the folder of MODEL's int8 variant in the model repository."""
    parameters = params.load(model)
    images = dataset.load_training(parameters.data).images.numpy()
    spread = np.linspace(0, len(images) - 1, min(parameters.int8.calibration_images, len(images))).astype(int)

    float32 = onnx.load(artifacts.require(artifacts.onnx(model)))
    quantized = quantize(pool_after_relu(float32), images[spread])
    quantized.graph.name = artifacts.int8(model)
    onnx.helper.set_model_props(quantized, describe(float32, artifacts.int8(model), len(spread)))
    repository.write(artifacts.int8(model), quantized, parameters.data.classes)


def pool_after_relu(model: ModelProto) -> ModelProto:
    """Swap, in place, each max-pool with the ReLU that alone follows it, which changes no answer; return the model.

    In training, ReLU has less to do after the pool; here the quantizer makes it a part of the convolution before, if it
    follows at once, and the pool then runs in int8.
    """
    for first, second in zip(model.graph.node, model.graph.node[1:]):
        if (first.op_type, second.op_type) == ("MaxPool", "Relu") and second.input[0] == first.output[0]:
            pool = NodeProto()
            pool.CopyFrom(first)
            pool.input[0], pool.output[0] = second.input[0], second.output[0]
            first.CopyFrom(onnx.helper.make_node("Relu", first.input, first.output, second.name))
            second.CopyFrom(pool)
    model.graph.ClearField("value_info")  # the shapes in between
    return model


def quantize(model: ModelProto, images: np.ndarray) -> ModelProto:
    """Quantize the weights by channel, and the activations by their ranges on uint8 images [n, 1, 28, 28].

    The result is standard operators between QuantizeLinear and DequantizeLinear, which runtimes fuse (QDQ). Weights
    take 7 bits of the 8, as processors without VNNI add products up in 16 bits and would overflow (ONNX Runtime's
    "Quantize ONNX Models").
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True, skip_optimization=True)  # infers shapes
        quantize_static(
            prepared,
            quantized,
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,
        )
        return onnx.load(quantized)


class Calibration(CalibrationDataReader):
    """Hands the quantizer uint8 images [n, 1, 28, 28], batch by batch."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def describe(float32: ModelProto, name: str, images: int) -> dict[str, str]:
    """Return the metadata of the int8 variant: that of the model it is made from, and in what it differs."""
    metadata = repository.metadata(float32)
    frameworks = json.loads(metadata["frameworks"]) | {"onnxruntime": onnxruntime.__version__}
    return metadata | {
        "model_name": name,
        "quantization": f"int8, static, of {metadata['model_name']}, calibrated on {images} training images",
        "frameworks": json.dumps(frameworks),
    }


if __name__ == "__main__":
    command.run(main, "model")
