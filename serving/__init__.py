"""Inference server and demo page for a model repository: Open Inference Protocol over HTTP and gRPC."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by ONNX Runtime when it is imported

__version__ = "0.1.0"
