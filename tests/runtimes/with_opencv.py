"""Run MODEL.onnx in OpenCV on the images in the file `image`, and write the files `label` and `probabilities`."""

import sys

import cv2
import numpy as np

network = cv2.dnn.readNetFromONNX(sys.argv[1])
network.setInput(np.fromfile("image", np.uint8).reshape(-1, 1, 28, 28))
names = ["label", "probabilities"]
for name, output in zip(names, network.forward(names)):
    output.tofile(name)
print(cv2.__version__)
