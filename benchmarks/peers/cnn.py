"""The model that every peer serves, on one thread: `python benchmarks/peers/with_NAME.py PORT MODEL.ONNX`.

The scripts need no more than their server and ONNX Runtime, so that each may have an environment of its own.
"""

import sys

import onnxruntime

NAME = "cnn"
OUTPUTS = ("label", "probabilities")


def port() -> int:
    return int(sys.argv[1])


def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
