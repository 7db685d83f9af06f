"""The model that each peer serves with one intra-op thread: `python benchmarks/peers/with_NAME.py PORT MODEL.ONNX`.

The scripts need only their server and ONNX Runtime, so that each peer can have an environment of its own.
"""

import sys

import onnxruntime

NAME = "cnn"
OUTPUTS = ("label", "probabilities")


def port_argument() -> int:
    return int(sys.argv[1])


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
