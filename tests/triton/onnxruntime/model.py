"""Stands in for Triton's ONNX Runtime backend, which PyPI lacks: Triton's Python backend loads this file as a model."""

import json
import os
import sys

sys.path.insert(0, os.environ["TRITON_PACKAGES"])  # NumPy 1 and ONNX Runtime, for Triton's interpreter

import numpy
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """A session of one intra-op thread; Triton itself reshapes inputs and outputs."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests):
        """Run the requests of a dynamic batch as one batch, as Triton's own backend does."""
        inputs = {}
        for name in self.inputs:
            arrays = [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            inputs[name] = arrays[0] if len(arrays) == 1 else numpy.concatenate(arrays)
        for name, array in inputs.items():
            if array.dtype == numpy.object_:  # ONNX Runtime takes str
                inputs[name] = numpy.array([value.decode() for value in array.ravel()], object).reshape(array.shape)
        outputs = self.session.run(self.outputs, inputs)
        if len(requests) == 1:
            return [self.response(outputs)]
        ends = numpy.cumsum([len(array) for array in arrays[:-1]])
        return [self.response(parts) for parts in zip(*(numpy.split(output, ends) for output in outputs))]

    def response(self, outputs):
        return triton.InferenceResponse([triton.Tensor(name, array) for name, array in zip(self.outputs, outputs)])
