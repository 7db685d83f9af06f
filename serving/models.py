"""Models of a model repository in Triton's layout, each version an ONNX Runtime session."""

import hashlib
import os
import stat
from collections.abc import Callable
from glob import glob
from pathlib import Path
from time import monotonic

import joblib
import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelWarmup

from serving import lockfile
from serving.config import (
    DATATYPES,
    FILE,
    MODEL_FILE,
    complete_config,
    intra_op_threads,
    parse_config,
    select_versions,
    tensor_specs,
)
from serving.errors import RequestError, StartError, one_line
from serving.limits import MAX_WARMUP_SECONDS
from serving.tensors import DTYPES, Array, Arrays, check_shape

REPOSITORY = Path("artifacts/model_repository")  # the pipeline's output

ReadFile = Callable[[Path], bytes]


class Model:
    """A version of a model: an ONNX Runtime session, its configuration, and its tensors as the protocol has them.

    `max_entropy`, in nats, is that of the probabilities above which an image shows none of the classes; infinite if the
    ONNX file does not state it.
    """

    def __init__(self, file: Path, config: ModelConfig, read_file: ReadFile):
        """Load NAME/VERSION/model.onnx and the label files that the configuration names, and warm the model up.

        Raises StartError if a file is unreadable or not the locked one, if the model cannot be loaded or contradicts
        its configuration, or if the warm-up fails.
        """
        *_, self.name, self.version, _ = file.parts
        options = SessionOptions()
        options.intra_op_num_threads = intra_op_threads(config) or joblib.cpu_count()
        # A model is one file: ONNX Runtime would read external data without the lock.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        content = read_file(file)
        try:
            self.session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.max_entropy = float(self.session.get_modelmeta().custom_metadata_map.get("max_entropy", "inf"))
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise StartError(f"{file}: expected an ONNX model, got: {one_line(error)}") from error
        folder = file.parent.parent
        try:
            self.config = complete_config(config, self.name, self.session)
        except ValueError as error:
            raise StartError(f"{folder / FILE}: {error}") from error
        self.batched = self.config.max_batch_size > 0
        self.inputs = tensor_specs(self.config.input, self.batched)
        self.outputs = tensor_specs(self.config.output, self.batched)
        self.labels = {
            entry.name: read_labels(folder / entry.label_filename, read_file)
            for entry in self.config.output
            if entry.label_filename
        }
        for warmup in self.config.model_warmup:
            self.warm_up(warmup, folder / FILE)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name. Inputs must have the model's names, dtypes and shapes.

        Raises RequestError if the model cannot compute its outputs from the values, such as an index out of range.
        """
        try:
            arrays = self.session.run([*self.outputs], self.reshape_inputs(inputs))
        except Exception as error:  # ONNX Runtime's errors have no common base class
            message = f"{self.name}: expected inputs that the model can process, got: {one_line(error)}"
            raise RequestError(message) from error
        size = len(next(iter(inputs.values()))) if self.batched else 0
        outputs = {}
        for spec, array in zip(self.outputs.values(), arrays):
            if self.batched and len(array) != size:
                raise RequestError(f"{self.name}: expected outputs of the inputs' batch size, {size}, got {len(array)}")
            try:
                outputs[spec.name] = reshape(array, spec.model_shape, spec.shape)
            except ValueError as error:
                raise RequestError(f"{spec.name}: expected an output that fits its reshape, got: {error}") from error
        return outputs

    def reshape_inputs(self, inputs: Arrays) -> Arrays:
        """Return the inputs in the shapes of the ONNX model."""
        specs = [(array, self.inputs[name]) for name, array in inputs.items()]
        return {spec.name: reshape(array, spec.shape, spec.model_shape) for array, spec in specs}

    def check_inputs(self, inputs: Arrays) -> None:
        """Raise RequestError unless these are all inputs of the model, with one batch size."""
        if inputs.keys() != self.inputs.keys():
            raise RequestError(f"inputs: expected {', '.join(self.inputs)}, got {', '.join(inputs) or 'none'}")
        batch_sizes = {len(array) for array in inputs.values()} if self.batched else {1}
        if len(batch_sizes) > 1:
            raise RequestError(f"inputs: expected one batch size, got {sorted(batch_sizes)}")

    def warm_up(self, warmup: ModelWarmup, file: Path) -> None:
        """Run the model on synthetic inputs, `count` times. Raises StartError if it fails or takes too long."""
        random = np.random.default_rng(seed=0)
        batch = (max(warmup.batch_size, 1),) * self.batched
        inputs = {}
        for name, entry in warmup.inputs.items():
            dtype = DTYPES[DATATYPES[entry.data_type]]
            inputs[name] = np.zeros((*batch, *entry.dims), dtype)
            if entry.random_data and dtype != np.object_:
                inputs[name] = np.asarray(random.uniform(0, 256, inputs[name].shape)).astype(dtype)
        try:
            self.check_inputs(inputs)
            for name, array in inputs.items():
                check_shape(array.shape, self.inputs[name])
            end = monotonic() + MAX_WARMUP_SECONDS
            for _ in range(max(warmup.count, 1)):
                self.run(inputs)
                if monotonic() > end:
                    raise RequestError(f"expected at most {MAX_WARMUP_SECONDS} seconds, got more")
        except RequestError as error:
            raise StartError(f"{file}: model_warmup.{warmup.name}: {error}") from error


def reshape(array: Array, source: tuple[int, ...], target: tuple[int, ...]) -> Array:
    """Return an array of one shape in another one; -1 is a variable length, the first of two that of the batch."""
    if source == target:
        return array
    if target.count(-1) == 2:
        target = (len(array), *target[1:])
    return array.reshape(target)


def load_versions(folder: Path, read_file: ReadFile) -> list[Model]:
    """Load the versions of the model in NAME/ that its version policy selects, in ascending order.

    Raises StartError if one of them cannot be loaded, or there is none.
    """
    file = folder / FILE
    try:
        config = parse_config(read_file(file).decode() if file.is_file() else "", folder.name)
        name = config.default_model_filename or MODEL_FILE
        files = find_files(folder, f"*/{name}")
        by_version = {int(file.parent.name): file for file in files if is_version(file.parent.name)}
        versions = select_versions(config, by_version)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise StartError(f"{file}: {error}") from error
    return [Model(by_version[version], config, read_file) for version in versions]


def is_version(name: str) -> bool:
    """Say whether a directory's name is that of a version, as in Triton: a number without leading zeros."""
    return name.isascii() and name.isdecimal() and name[0] != "0"


def load_models(repository: Path) -> dict[str, Model]:
    """Load the latest version of every model in a repository; return the models by name.

    Raises StartError if there is no model, or if one cannot be loaded.
    """
    return {name: load_versions(repository / name, read_bytes)[-1] for name in model_names(repository)}


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files and directories that match a pattern, such as */*, also in links to directories.

    Unlike Path.glob, it ignores directories that are removed meanwhile.
    """
    return [folder / name for name in glob(pattern, root_dir=folder, include_hidden=True)]


def model_names(repository: Path) -> list[str]:
    """Return the names of the models in a repository. Raises StartError if there are none."""
    if not repository.is_dir():
        raise StartError(f"{repository}: expected a directory, got none")
    names = {file.parent.parent.name for file in find_files(repository, "*/*/*") if is_version(file.parent.name)}
    if not names:
        raise StartError(f"{repository}: expected NAME/VERSION/{MODEL_FILE}, got no model; `make repro` builds them")
    return sorted(names)


def read_labels(file: Path, read_file: ReadFile) -> tuple[str, ...]:
    """Return the class labels in a file, one per line. Raises StartError if it is unreadable or not UTF-8."""
    try:
        return tuple(read_file(file).decode().splitlines())
    except UnicodeDecodeError as error:
        raise StartError(f"{file}: expected UTF-8, got: {error}") from error


def read_bytes(file: Path) -> bytes:
    """Return a file's content. Raises StartError if it cannot be read, or is none that ends, such as a pipe."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise StartError(f"{file}: expected a readable file, got a directory, a pipe or a device")
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
