"""Models of a model repository in Triton's layout, each an ONNX Runtime session."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession, NodeArg, SessionOptions
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from serving import lockfile
from serving.errors import RequestError, StartError

REPOSITORY = Path("artifacts/model_repository")  # the pipeline's output

DATATYPES: dict[str, tuple[str, type[np.generic]]] = {  # ONNX Runtime's type: the protocol's datatype, NumPy's dtype
    "tensor(bool)": ("BOOL", np.bool_),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(uint16)": ("UINT16", np.uint16),
    "tensor(uint32)": ("UINT32", np.uint32),
    "tensor(uint64)": ("UINT64", np.uint64),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int16)": ("INT16", np.int16),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
}

Array = npt.NDArray[Any]
Arrays = dict[str, Array]  # by tensor name
ReadFile = Callable[[Path], bytes]


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a model's input or output."""

    name: str
    datatype: str  # in the protocol's terms, such as UINT8
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # -1: variable length


class Model:
    """An ONNX Runtime session with the names, types and shapes of its inputs and outputs, and its class labels.

    `max_entropy`, in nats, is that of the probabilities above which an image shows none of the classes; infinite if the
    file does not state it.
    `batchable` is true if only the batch dimension varies, so that requests can be concatenated to one batch.
    """

    def __init__(self, file: Path, threads: int, read_file: ReadFile):
        """Load NAME/VERSION/model.onnx and NAME/labels.txt; `threads` 0 means one intra-op thread per core.

        Raises StartError if a file is unreadable, not the locked one, or not a model that can be served.
        """
        *_, self.name, self.version, _ = file.parts
        self.labels = read_labels(file.parent.parent / "labels.txt", read_file)
        options = SessionOptions()
        options.intra_op_num_threads = threads
        content = read_file(file)
        try:
            self.session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
            nodes = [*self.session.get_inputs(), *self.session.get_outputs()]
            self.inputs = {node.name: tensor_spec(node) for node in self.session.get_inputs()}
            self.outputs = {node.name: tensor_spec(node) for node in self.session.get_outputs()}
            self.max_entropy = float(self.session.get_modelmeta().custom_metadata_map.get("max_entropy", "inf"))
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise StartError(f"{file}: expected an ONNX model, got: {' '.join(str(error).split())}") from error
        batch_dimensions = {node.shape[0] for node in nodes}  # names, or None where the file gives no name
        other_dimensions = [spec.shape[1:] for spec in (*self.inputs.values(), *self.outputs.values())]
        self.batchable = (
            len(batch_dimensions) == 1
            and None not in batch_dimensions
            and not any(-1 in dimensions for dimensions in other_dimensions)
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name. Inputs must have the model's names, dtypes and shapes.

        Raises RequestError if the model rejects the values, such as an index out of range.
        """
        try:
            return dict(zip(self.outputs, self.session.run(None, inputs)))
        except InvalidArgument as error:
            raise RequestError(f"{self.name}: expected values that the model accepts, got: {error}") from error


def read_labels(file: Path, read_file: ReadFile) -> list[str]:
    """Return the class labels in a labels.txt, one per line; none if there is no such file."""
    try:
        return read_file(file).decode().splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        raise StartError(f"{file}: expected UTF-8, got: {error}") from error


def tensor_spec(node: NodeArg) -> TensorSpec:
    """Return the specification of a model's input or output.

    Raises ValueError if its first dimension is not variable, or its type has no counterpart in the protocol.
    """
    shape = tuple(length if isinstance(length, int) else -1 for length in node.shape)
    if shape[:1] != (-1,):
        raise ValueError(f"{node.name}: expected a variable batch dimension first, got the shape {node.shape}")
    if node.type not in DATATYPES:
        raise ValueError(f"{node.name}: expected one of {', '.join(DATATYPES)}, got {node.type}")
    datatype, dtype = DATATYPES[node.type]
    return TensorSpec(node.name, datatype, np.dtype(dtype), shape)


def load_models(repository: Path, threads: int = 1, lock: Path | None = None) -> dict[str, Model]:
    """Load the latest version of every model in a repository; return the models by name.

    With `lock`, a dvc.lock, files must have the MD5 digests recorded there.
    Raises StartError if there is no model, or if one cannot be loaded or does not match the lock.
    """
    files = latest_versions(repository)
    if not files:
        raise StartError(f"{repository}: expected NAME/VERSION/model.onnx, got no model; `make repro` builds them")
    read_file = verified_reader(repository, lock) if lock else read_bytes
    return {name: Model(file, threads, read_file) for name, file in files.items()}


def latest_versions(repository: Path) -> dict[str, Path]:
    """Return the ONNX file of the latest version of each model, by model name."""
    files = [file for file in repository.glob("*/*/model.onnx") if file.parent.name.isdecimal()]
    files.sort(key=lambda file: (file.parts[-3], int(file.parent.name)))
    return {file.parts[-3]: file for file in files}


def read_bytes(file: Path) -> bytes:
    """Return a file's content. Raises StartError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: expected a readable file, got: {error.strerror}") from error


def verified_reader(repository: Path, lock: Path) -> ReadFile:
    """Return a function that reads a file of the repository and verifies its MD5 digest against a dvc.lock.

    The function raises StartError if the digest differs or is not recorded, and so does this one if the lock cannot
    be read.
    """
    try:
        outputs = lockfile.read_outputs(lock)
    except ValueError as error:
        raise StartError(str(error)) from error

    def read_verified(file: Path) -> bytes:
        name, content = file.relative_to(repository).as_posix(), read_bytes(file)
        recorded = [md5 for (_, path), md5 in outputs.items() if path.endswith(f"/{name}") and md5]
        if not recorded:
            raise StartError(f"{lock}: expected an output that ends with {name}, got none")
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 not in recorded:
            expected = " or ".join(recorded)
            raise StartError(
                f"{file}: expected MD5 {expected}, got {md5}; remove the file, then `dvc checkout` restores it"
            )
        return content

    return read_verified
