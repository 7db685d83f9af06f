"""Run MODEL.onnx in tract on the images in the file `image`, and write the files `label` and `probabilities`."""

import sys

import numpy as np
import tract

images = np.fromfile("image", np.uint8).reshape(-1, 1, 28, 28)
runnable = tract.onnx().load(sys.argv[1]).into_model().into_runnable()
for name, output in zip(("label", "probabilities"), runnable.run([images])):  # tract's outputs have no names
    output.to_numpy().tofile(name)
print(tract.version())
