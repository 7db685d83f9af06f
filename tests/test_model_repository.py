import builtins
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnxruntime import InferenceSession
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from stages import artifacts, evaluate, model_repository, params
from tests.conftest import PROJECT

NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}
OLDEST_RUNTIME = PROJECT / "build" / "oldest-onnxruntime"  # .ci/run installs it there
OLDEST_VERSIONS = {(3, 11): "1.15.0", (3, 12): "1.17.0", (3, 13): "1.20.0"}  # for each version of Python


@pytest.fixture(params=["fnn", "cnn_int8"])
def name(models, request) -> str:
    """A model in the model repository."""
    return request.param


@pytest.fixture
def config(name) -> model_config_pb2.ModelConfig:
    """The model's config.pbtxt, parsed as Triton's protocol buffer."""
    return text_format.Parse(artifacts.triton_config(name).read_text(), model_config_pb2.ModelConfig())


def triton_signature(values) -> dict:
    """Return types and shapes by name, without the batch dimension; the model's shape is that of a reshape."""
    types = model_config_pb2.DataType
    return {
        value.name: (
            np.dtype(triton_to_np_dtype(types.Name(value.data_type).removeprefix("TYPE_"))),
            list(value.reshape.shape if value.HasField("reshape") else value.dims),
        )
        for value in values
    }


def onnx_signature(values) -> dict:
    return {value.name: (np.dtype(NUMPY_TYPES[value.type]), list(value.shape[1:])) for value in values}


def test_inputs_and_outputs_in_the_triton_config_are_those_of_the_onnx_file(name, config):
    session = InferenceSession(artifacts.onnx(name))
    assert config.name == name
    assert config.backend == "onnxruntime"
    assert triton_signature(config.input) == onnx_signature(session.get_inputs())
    assert triton_signature(config.output) == onnx_signature(session.get_outputs())


def test_the_model_accepts_the_maximum_batch_size_of_the_triton_config(name, config):
    assert config.HasField("dynamic_batching")
    images = np.zeros((config.max_batch_size, 1, 28, 28), np.uint8)
    assert len(InferenceSession(artifacts.onnx(name)).run(["label"], {"image": images})[0]) == len(images) > 1


def test_the_label_file_of_the_triton_config_has_the_class_names(name, config):
    (file,) = {output.label_filename for output in config.output if output.label_filename}
    labels = (artifacts.model_folder(name) / file).read_text().splitlines()
    assert labels == params.load_params().data.classes


def test_sha256sum_verifies_the_checksums_and_finds_a_changed_byte(name):
    folder = artifacts.model_folder(name)
    check = ["sha256sum", "--check", "--quiet", artifacts.checksums(name).name]
    assert subprocess.run(check, cwd=folder).returncode == 0
    content = bytearray(artifacts.onnx(name).read_bytes())
    content[len(content) // 2] ^= 1
    artifacts.onnx(name).write_bytes(content)
    ended = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "1/model.onnx: FAILED" in ended.stdout


def test_the_checksums_cover_every_file(name):
    folder = artifacts.model_folder(name)
    listed = {line.split("  ")[1] for line in artifacts.checksums(name).read_text().splitlines()}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == listed | {"SHA256SUMS"}


def test_text_files_have_lf_line_endings_on_windows_too(models, monkeypatch):
    """Text mode translates line endings on Windows, unless a call of open forbids it."""
    real_open = io.open

    def open_as_on_windows(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *arguments):
        if newline is None and "b" not in mode and "r" not in mode:
            newline = "\r\n"
        return real_open(file, mode, buffering, encoding, errors, newline, *arguments)

    model = onnx.load(artifacts.onnx("fnn"))
    with monkeypatch.context() as patch:
        for module in (io, builtins):
            patch.setattr(module, "open", open_as_on_windows)
        Path("translated.txt").write_text("\n")
        model_repository.write_model("fnn", model, ["a", "b"])
        evaluate.write_csv(artifacts.confusion("fnn"), ["actual", "predicted"], [["a", "b"]])
        artifacts.write_json(artifacts.evaluation("fnn"), {"accuracy": 1})
    assert Path("translated.txt").read_bytes() == b"\r\n"
    written = [artifacts.triton_config("fnn"), artifacts.labels("fnn"), artifacts.checksums("fnn")]
    written += [artifacts.evaluation("fnn"), artifacts.confusion("fnn")]
    assert [file for file in written if b"\r" in file.read_bytes()] == []


def test_the_oldest_supported_onnx_runtime_returns_the_same_probabilities(models):
    version = OLDEST_VERSIONS.get(sys.version_info[:2])
    if not OLDEST_RUNTIME.is_dir():
        pytest.skip(f"needs ONNX Runtime {version} in {OLDEST_RUNTIME.relative_to(PROJECT)}, where .ci/run installs it")
    np.save("images.npy", np.random.default_rng(0).integers(256, size=(8, 1, 28, 28), dtype=np.uint8))
    script = (
        "import sys, numpy, onnxruntime\n"
        "run = onnxruntime.InferenceSession(sys.argv[1]).run\n"
        "numpy.save('probabilities.npy', run(['probabilities'], {'image': numpy.load('images.npy')})[0])\n"
        "print(onnxruntime.__version__)"
    )
    for name in ("fnn", "cnn", "fnn_int8", "cnn_int8"):
        command = [sys.executable, "-c", script, artifacts.onnx(name)]
        assert subprocess.check_output(command, env={"PYTHONPATH": str(OLDEST_RUNTIME)}, text=True) == f"{version}\n"
        session = InferenceSession(artifacts.onnx(name))
        expected = session.run(["probabilities"], {"image": np.load("images.npy")})[0]
        tolerance = 0.05 if "int8" in name else 1e-5  # activations in int8 may be rounded to either neighbor
        assert np.load("probabilities.npy") == pytest.approx(expected, abs=tolerance), name


def test_models_have_no_details_on_which_other_runtimes_fail(name):
    graph = onnx.load(artifacts.onnx(name)).graph
    assert not graph.value_info
    assert "allowzero" not in {attribute.name for node in graph.node for attribute in node.attribute}


def test_opset_and_ir_version_are_of_the_same_onnx_release(name):
    model = onnx.load(artifacts.onnx(name))
    assert onnx.helper.find_min_ir_version_for(model.opset_import) == model.ir_version
