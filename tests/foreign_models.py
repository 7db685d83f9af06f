"""Models of one operator, with any configuration, for tests of the server."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_model(
    file: Path,
    operator: str,
    inputs: str,
    shape: list,
    kind: int = TensorProto.FLOAT,
    config: str | None = None,
    attributes: dict | None = None,
    **constants: np.ndarray,
) -> None:
    """Save NAME/VERSION/model.onnx, a model of one operator, and its configuration.

    The operator's arguments are the constants and then the inputs, with names of one letter; all have the same shape.
    """
    values = {name: helper.make_tensor_value_info(name, kind, shape) for name in (*inputs, "result")}
    result = values.pop("result")
    node = helper.make_node(operator, [*constants, *inputs], ["result"], **attributes or {})
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", list(values.values()), [result], tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)
    if config is not None:
        (file.parent.parent / "config.pbtxt").write_text(config)
