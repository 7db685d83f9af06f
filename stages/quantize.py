"""Quantize one exported model to int8, with the same inputs and outputs."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

from stages import artifacts, command, dataset, model_repository, params

BATCH_SIZE = 100
QUANTIZED = ["Conv", "Gemm", "MaxPool", "Relu", "Reshape"]  # not Softmax: quantized probabilities do not sum to 1


def main(model: str) -> None:
    """Write the folder of MODEL's int8 variant in the model repository."""
    parameters = params.load_params(model)
    images = dataset.load_training_set(parameters.data).images.numpy()
    evenly_spaced = np.linspace(0, len(images) - 1, min(parameters.int8.calibration_images, len(images))).astype(int)

    float32 = onnx.load(artifacts.require_file(artifacts.onnx(model)))
    quantized = quantize_int8(pool_after_relu(float32), images[evenly_spaced])
    quantized.graph.name = artifacts.int8_name(model)
    onnx.helper.set_model_props(quantized, int8_metadata(float32, artifacts.int8_name(model), len(evenly_spaced)))
    model_repository.write_model(artifacts.int8_name(model), quantized, parameters.data.classes)


def pool_after_relu(model: ModelProto) -> ModelProto:
    """Swap, in place, each max-pool with the ReLU that directly follows it, and return the model.

    The two commute. Training is faster with ReLU after the pool; the quantizer fuses a ReLU that directly follows a
    convolution, and the pool then runs in int8.
    """
    for first, second in zip(model.graph.node, model.graph.node[1:]):
        if (first.op_type, second.op_type) == ("MaxPool", "Relu") and second.input[0] == first.output[0]:
            pool = NodeProto()
            pool.CopyFrom(first)
            pool.input[0], pool.output[0] = second.input[0], second.output[0]
            first.CopyFrom(onnx.helper.make_node("Relu", first.input, first.output, second.name))
            second.CopyFrom(pool)
    return model


def quantize_int8(model: ModelProto, images: NDArray[np.uint8]) -> ModelProto:
    """Quantize weights per channel, and activations by their ranges on calibration images, uint8 [n, 1, 28, 28].

    The result is in QDQ format: standard operators between QuantizeLinear and DequantizeLinear, which runtimes fuse.
    Weights use 7 of the 8 bits, because processors without VNNI accumulate in 16 bits and would overflow (ONNX
    Runtime, "Quantize ONNX models").
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True, skip_optimization=True)  # infers shapes
        quantize_static(
            prepared,
            quantized,
            CalibrationImages(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,
            extra_options={"QuantizeBias": False},  # OpenCV 5 does not load int32 biases; ONNX Runtime quantizes them
        )
        return onnx.load(quantized)


class CalibrationImages(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Batches of uint8 images [n, 1, 28, 28] for the quantizer's calibration."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next batch, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def int8_metadata(float32: ModelProto, name: str, images: int) -> dict[str, str]:
    """Return the float32 model's metadata_props with the int8 variant's name, quantization and versions."""
    metadata = model_repository.read_metadata(float32)
    frameworks = json.loads(metadata["frameworks"]) | {"onnxruntime": onnxruntime.__version__}
    return metadata | {
        "model_name": name,
        "quantization": f"int8, static, of {metadata['model_name']}, calibrated on {images} training images",
        "frameworks": json.dumps(frameworks),
    }


if __name__ == "__main__":
    command.run(main, "model")
