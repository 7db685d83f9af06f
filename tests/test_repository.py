import subprocess
import sys

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnxruntime import InferenceSession
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from stages import artifacts, params

NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}
OLDEST_RUNTIME = {(3, 11): "1.15.0", (3, 12): "1.17.0", (3, 13): "1.20.0"}  # that installs on a version of Python


@pytest.fixture(params=["fnn", "cnn_int8"])
def name(models, request) -> str:
    """A model in the repository."""
    return request.param


@pytest.fixture
def config(name) -> model_config_pb2.ModelConfig:
    """What Triton reads from the model's configuration."""
    return text_format.Parse(artifacts.triton_config(name).read_text(), model_config_pb2.ModelConfig())


def triton_signature(values) -> dict:
    """Names, types and shapes without the batch; a reshape tells the model's own shape."""
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


def test_triton_is_told_the_signature_of_the_onnx_file(name, config):
    session = InferenceSession(artifacts.onnx(name))
    assert config.name == name
    assert config.backend == "onnxruntime"
    assert triton_signature(config.input) == onnx_signature(session.get_inputs())
    assert triton_signature(config.output) == onnx_signature(session.get_outputs())


def test_triton_may_batch_as_much_as_the_model_takes(name, config):
    assert config.HasField("dynamic_batching")
    images = np.zeros((config.max_batch_size, 1, 28, 28), np.uint8)
    assert len(InferenceSession(artifacts.onnx(name)).run(["label"], {"image": images})[0]) == len(images) > 1


def test_tritons_classification_answers_with_the_names_of_the_classes(name, config):
    (file,) = {output.label_filename for output in config.output if output.label_filename}
    labels = (artifacts.triton_config(name).parent / file).read_text().splitlines()
    assert labels == params.load().data.classes


def test_sha256sum_finds_a_changed_byte(name):
    folder = artifacts.checksums(name).parent
    check = ["sha256sum", "--check", "--quiet", artifacts.checksums(name).name]
    assert subprocess.run(check, cwd=folder).returncode == 0
    content = bytearray(artifacts.onnx(name).read_bytes())
    content[len(content) // 2] ^= 1
    artifacts.onnx(name).write_bytes(content)
    ended = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "1/model.onnx: FAILED" in ended.stdout


def test_every_file_is_in_the_sums(name):
    folder = artifacts.checksums(name).parent
    listed = {line.split("  ")[1] for line in artifacts.checksums(name).read_text().splitlines()}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == listed | {"SHA256SUMS"}


def test_the_oldest_runtime_that_installs_here_answers_the_same(models, tmp_path_factory):
    version = OLDEST_RUNTIME.get(sys.version_info[:2])
    if version is None:
        pytest.skip("no old runtime is known for this Python")
    packages = tmp_path_factory.mktemp("onnxruntime")
    numpy = "numpy<2" if sys.version_info < (3, 13) else "numpy"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
    subprocess.run([*install, f"onnxruntime=={version}", numpy], check=True)

    np.save("images.npy", np.random.default_rng(0).integers(256, size=(8, 1, 28, 28), dtype=np.uint8))
    ask = (
        "import sys, numpy, onnxruntime\n"
        "run = onnxruntime.InferenceSession(sys.argv[1]).run\n"
        "numpy.save('answer.npy', run(['probabilities'], {'image': numpy.load('images.npy')})[0])\n"
        "print(onnxruntime.__version__)"
    )
    for name in ("fnn", "cnn", "fnn_int8", "cnn_int8"):
        command = [sys.executable, "-c", ask, artifacts.onnx(name)]
        assert subprocess.check_output(command, env={"PYTHONPATH": str(packages)}, text=True) == f"{version}\n"
        session = InferenceSession(artifacts.onnx(name))
        expected = session.run(["probabilities"], {"image": np.load("images.npy")})[0]
        tolerance = 0.05 if "int8" in name else 1e-5  # a value that is rounded the other way changes the next ones
        assert np.load("answer.npy") == pytest.approx(expected, abs=tolerance), name


def test_opset_and_ir_version_belong_to_the_same_release(name):
    model = onnx.load(artifacts.onnx(name))
    assert onnx.helper.find_min_ir_version_for(model.opset_import) == model.ir_version
