"""The model that each peer serves with one intra-op thread.

`python benchmarks/peers/with_NAME.py MODEL.ONNX PORT [MAX_BATCH_SIZE SECONDS]`: the batch size counts requests, and the
seconds are the longest wait for a full batch; without them, dynamic batching is off. gRPC has the next port.

The scripts need only their server and ONNX Runtime, so that each peer can have an environment of its own.
"""

import sys
from pathlib import Path

import onnxruntime

FILE = Path(sys.argv[1])
PORT = int(sys.argv[2])
MAX_BATCH_SIZE, BATCH_SECONDS = (int(sys.argv[3]), float(sys.argv[4])) if len(sys.argv) > 3 else (1, 0.0)

NAME = FILE.parent.parent.name  # in a model repository
OUTPUTS = ("label", "probabilities")


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(FILE, options, providers=["CPUExecutionProvider"])
