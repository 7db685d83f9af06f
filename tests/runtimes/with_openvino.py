"""Run MODEL.onnx in OpenVINO on the images in the file `image`, and write the files `label` and `probabilities`."""

import sys

import numpy as np
import openvino as ov

images = np.fromfile("image", np.uint8).reshape(-1, 1, 28, 28)
hint = {ov.properties.hint.inference_precision: ov.Type.f32}  # some CPUs would compute in bfloat16 or float16
outputs = ov.Core().compile_model(sys.argv[1], "CPU", hint)(images)
for name in ("label", "probabilities"):
    outputs[name].tofile(name)
print(ov.__version__.split("-")[0])
