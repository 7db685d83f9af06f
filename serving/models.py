"""The models of a repository, loaded from their ONNX files."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from onnxruntime import InferenceSession, NodeArg, SessionOptions
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from serving.errors import RequestError, StartError

REPOSITORY = Path("artifacts/model_repository")  # where the pipeline writes

# ONNX Runtime's types: what the protocol calls them, and numpy
DATATYPES = {
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

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model."""

    name: str
    datatype: str  # as the protocol calls it
    dtype: np.dtype
    shape: tuple[int, ...]  # -1: any length


class Model:
    """A model that answers."""

    def __init__(self, file: Path, threads: int, read: Callable[[Path], bytes]):
        """Load NAME/VERSION/model.onnx, to run on so many threads; 0: one for each core. `read` returns its content.

        `joins` says whether one batch may hold several requests: all that varies is one length, the batch's. Raises
        StartError if it cannot be loaded.
        """
        options = SessionOptions()
        options.intra_op_num_threads = threads
        *_, self.name, self.version, _ = file.parts
        try:
            self.session = InferenceSession(read(file), options, providers=["CPUExecutionProvider"])
            inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
            self.inputs = {value.name: tensor(value) for value in inputs}
            self.outputs = {value.name: tensor(value) for value in outputs}
            self.classes = class_names(file.parent.parent / "labels.txt", read)
        except Exception as error:  # the runtime's errors have no class in common
            raise StartError(f"{file} cannot be loaded: {' '.join(str(error).split())}") from error
        lengths = [tensor.shape[1:] for tensor in (*self.inputs.values(), *self.outputs.values())]
        batches = {value.shape[0] for value in (*inputs, *outputs)}
        self.joins = len(batches) == 1 and None not in batches and not any(-1 in shape for shape in lengths)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by their names. The inputs have to be of the model's types and shapes.

        Raises RequestError if the model cannot take their values.
        """
        try:
            return dict(zip(self.outputs, self.session.run(None, inputs)))
        except InvalidArgument as error:
            raise RequestError(f"{self.name} cannot take these values: {error}") from error


def class_names(file: Path, read: Callable[[Path], bytes]) -> list[str]:
    """Return the names of a model's classes, one a line, if it has them."""
    return read(file).decode().splitlines() if file.is_file() else []


def tensor(value: NodeArg) -> Tensor:
    """Describe a model's input or output. Raises ValueError if it has no batches, or is of a type unknown here."""
    shape = tuple(length if isinstance(length, int) else -1 for length in value.shape)
    if shape[:1] != (-1,):
        raise ValueError(f"{value.name} has the shape {value.shape}; allowed: a batch of any length first")
    if value.type not in DATATYPES:
        raise ValueError(f"{value.name} is a {value.type}; allowed: {', '.join(DATATYPES)}")
    datatype, dtype = DATATYPES[value.type]
    return Tensor(value.name, datatype, np.dtype(dtype), shape)


def load(repository: Path, threads: int = 0, lock: Path | None = None) -> dict[str, Model]:
    """Load the models of a repository in Triton's layout by their names, each in its latest version.

    With `lock`, a dvc.lock, only files with the digests there are accepted. Raises StartError if there is no model, or
    one that is broken or not the locked one.
    """
    files = latest(repository)
    if not files:
        raise StartError(f"{repository} has no models, no NAME/VERSION/model.onnx; `make repro` makes them")
    read = reader(repository, lock) if lock else Path.read_bytes
    return {name: Model(file, threads, read) for name, file in files.items()}


def latest(repository: Path) -> dict[str, Path]:
    """Return the ONNX file of each model's latest version, by the names of the models."""
    files = [file for file in repository.glob("*/*/model.onnx") if file.parent.name.isdecimal()]
    files.sort(key=lambda file: (file.parts[-3], int(file.parent.name)))
    return {file.parts[-3]: file for file in files}


def reader(repository: Path, lock: Path) -> Callable[[Path], bytes]:
    """Return a function that reads a file of the repository, and raises ValueError if it is not as locked.

    Raises StartError if the lock cannot be read.
    """
    digests = locked(lock)

    def read(file: Path) -> bytes:
        name, content = file.relative_to(repository).as_posix(), file.read_bytes()
        expected = [md5 for path, md5 in digests.items() if path.endswith(f"/{name}")]
        if not expected:
            raise ValueError(f"{name} is not in {lock}")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() not in expected:
            raise ValueError(f"{name} is not the file that is locked; `dvc checkout` brings that back")
        return content

    return read


def locked(lock: Path) -> dict[str, str]:
    """Return the MD5 digests of the files in a dvc.lock, by their paths. Raises StartError if it cannot be read."""
    try:
        stages = yaml.safe_load(lock.read_bytes())["stages"].values()
        outputs = [out for stage in stages for out in stage.get("outs", ())]
        return {out["path"]: out.get("md5") for out in outputs}  # which folders may lack
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise StartError(f"{lock} cannot be read as a dvc.lock: {' '.join(str(error).split())}") from error
