"""The models in other runtimes than ONNX Runtime."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession

from stages import artifacts
from tests.conftest import PROJECT

SCRIPTS = PROJECT / "tests" / "runtimes"
PACKAGES = PROJECT / "build" / "runtimes"  # `make runtimes` installs there what the environment does not have
RUNTIMES = {  # the script of each, and where under PACKAGES its packages are
    "OpenVINO": ("with_openvino.py", "python"),
    "tract": ("with_tract.py", "python"),
    "OpenCV": ("with_opencv.py", None),
    "onnxruntime-web": ("with_onnxruntime_web.cjs", "npm"),
}


def compare(script: str, model: Path, images: np.ndarray, folder: Path) -> tuple[str, int, float]:
    """Run a model in another runtime and in ONNX Runtime, on images uint8 [n, 1, 28, 28], and compare the outputs.

    A label may differ only where the two largest probabilities differ by no more than the tolerance.

    Returns:
        The other runtime's version, the number of changed labels, and the largest difference of a probability.
    """
    images.tofile(folder / "image")
    program = "node" if script.endswith(".cjs") else sys.executable
    variables = {"PYTHONPATH": str(PACKAGES / "python"), "NODE_PATH": str(PACKAGES / "npm" / "node_modules")}
    command = [program, SCRIPTS / script, model]
    ended = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    expected_label, expected = InferenceSession(model).run(["label", "probabilities"], {"image": images})
    label = np.fromfile(folder / "label", expected_label.dtype)
    probabilities = np.fromfile(folder / "probabilities", expected.dtype).reshape(expected.shape)
    tolerance = 0.05 if "int8" in str(model) else 1e-5  # activations in int8 may be rounded to either neighbor
    assert probabilities == pytest.approx(expected, abs=tolerance), model
    changed = label != expected_label
    second, first = np.sort(expected).T[-2:]
    assert not changed[first - second > tolerance].any(), model
    return ended.stdout.strip(), int(changed.sum()), float(np.abs(probabilities - expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_runtime_returns_the_same_labels(shipped, test_set, tmp_path, runtime):
    """Prints the runtime's row of the table in docs/deployment.md."""
    script, packages = RUNTIMES[runtime]
    if packages and not (PACKAGES / packages / "installed").exists():
        pytest.skip(f"needs {(PACKAGES / packages).relative_to(PROJECT)}; run `make runtimes`")
    images = test_set[0][:1000, np.newaxis]
    models = [shipped / name / "1" / "model.onnx" for name in ("fnn", "cnn", "fnn_int8", "cnn_int8")]
    versions, changes, differences = zip(*(compare(script, model, images, tmp_path) for model in models))
    print("|", " | ".join([runtime, versions[0], str(sum(changes)), *map("{:.2g}".format, differences)]), "|")


@pytest.mark.parametrize("name", ["fnn", "cnn", "fnn_int8", "cnn_int8"])
def test_opencv_returns_the_same_labels(models, tmp_path, name):
    images = np.random.default_rng(0).integers(256, size=(1000, 1, 28, 28), dtype=np.uint8)
    compare("with_opencv.py", tmp_path / artifacts.onnx(name), images, tmp_path)
