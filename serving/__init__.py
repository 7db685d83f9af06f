"""Inference server and demo page for a model repository: Open Inference Protocol over HTTP."""

__version__ = "0.1.0"
