"""The validation of params.yaml, by stages.params and by its JSON Schema."""

import difflib
import shutil
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages import artifacts, check, idx, params
from stages.errors import UserError
from tests.conftest import PROJECT, digests, remove_param

NETWORK = {"hidden": [10]}
INVALID = [  # key, value, a part of the error
    ("networks.fnn.hiden", [1], "networks.fnn: expected the keys convolutions, kernel_size, hidden, batch_norm, got '"),
    ("networks.Big", NETWORK, "networks.Big: expected string should match pattern '^[a-z][a-z0-9_]{0,63}$', got 'Big'"),
    (f"networks.{'a' * 300}", NETWORK, "expected string should match pattern '^[a-z][a-z0-9_]{0,63}$', got 'aaa"),
    ("networks.data", NETWORK, "networks: expected a name other than data, model_repository and *_int8, which are res"),
    ("networks.model_repository", NETWORK, "which are reserved, got 'model_repository'"),
    ("networks.a_int8", NETWORK, "which are reserved, got 'a_int8'"),
    ("networks.fnn.hidden", [1_000_000_000], "networks.fnn.hidden[0]: expected x <= 16384, got 1000000000"),
    ("networks.fnn.hidden", [0], "networks.fnn.hidden[0]: expected x > 0, got 0"),
    ("networks.fnn.hidden", [1] * 17, "networks.fnn.hidden: expected list should have at most 16 items"),
    ("networks.cnn.convolutions", [[32], []], "networks.cnn.convolutions[1]: expected list should have at least 1 it"),
    ("networks.cnn.convolutions", [[1]] * 5, "networks.cnn.convolutions: expected list should have at most 4 items"),
    ("networks.cnn.kernel_size", 0, "networks.cnn.kernel_size: expected x > 0, got 0"),
    ("networks.cnn.kernel_size", 28, "networks.cnn.kernel_size: expected x < 28, got 28"),
    ("networks.cnn.kernel_size", 29, "networks.cnn.kernel_size: expected x < 28, got 29"),
    ("networks.cnn", {"convolutions": [[1]]}, "kernel_size: expected 1 or more, as there are convolutions, got 0"),
    ("recipes.default.fnn.epochs", "10", "recipes.default.fnn.epochs: expected a valid integer, got '10'"),
    ("recipes.default.fnn.epochs", 10_001, "recipes.default.fnn.epochs: expected x <= 10000, got 10001"),
    ("recipes.default.fnn.batch_size", 2, "recipes.default.fnn.batch_size: expected x > 2, got 2"),
    ("recipes.default.fnn.learning_rate", -0.1, "recipes.default.fnn.learning_rate: expected x > 0.0, got -0.1"),
    ("recipes.default.fnn.learning_rate", 1e30, "recipes.default.fnn.learning_rate: expected x <= 100.0, got 1e+30"),
    ("recipes.default.cnn.dropout", 1.5, "recipes.default.cnn.dropout: expected x < 1.0, got 1.5"),
    ("recipes.default.cnn.warmup_fraction", 1.0, "recipes.default.cnn.warmup_fraction: expected x < 1.0, got 1.0"),
    ("recipes.default.cnn.initialization", "he", "recipes.default.cnn.initialization: expected 'pytorch' or 'glorot'"),
    ("recipes.default.cnn.augmentation.rotation", 181.0, "augmentation.rotation: expected x <= 180.0, got 181.0"),
    ("models", ["fnn", "fnn"], "models: expected distinct names, got ['fnn', 'fnn']"),
    ("models", "fnn", "models: expected a valid list, got 'fnn'"),
    ("data.classes", ["a", "a"], "data.classes: expected distinct names, got ['a', 'a']"),
    ("data.classes", ["a"], "data.classes: expected list should have at least 2 items"),
    ("data.classes", ["a", ""], "data.classes[1]: expected string should match pattern"),
    ("data.classes", ["a", "b\nc"], "data.classes[1]: expected string should match pattern"),
    ("data.classes", ["a", "b\u2028c"], "data.classes[1]: expected string should match pattern"),
    ("data.classes", ["a", "b" * 65], "data.classes[1]: expected string should match pattern"),
    ("data.sources", ["bundle"], "data.sources: expected torchvision, bundled or a directory with a slash, such as"),
    ("data.sources", [], "data.sources: expected list should have at least 1 item"),
    ("data.sha256", {}, "data.sha256: expected exactly the keys train-images-idx3-ubyte, train-labels-idx1-ubyte, "),
    ("data.sha256.t10k-labels-idx1-ubyte", "ff7", "data.sha256.t10k-labels-idx1-ubyte: expected string should match"),
    ("data.sha256.more", "0" * 64, "data.sha256: expected exactly the keys train-images-idx3-ubyte, "),
    ("data.validation_fraction", 0.6, "data.validation_fraction: expected x <= 0.5, got 0.6"),
    ("threads", -1, "threads: expected x >= 0, got -1"),
    ("threads", 100_000, "threads: expected x <= 256, got 100000"),
    ("seed", 2**32, "seed: expected x < 4294967296, got 4294967296"),
    ("device", "gpu", "device: expected 'auto', 'cpu', 'cuda' or 'mps', got 'gpu'"),
    ("minimum_accuracy.fnn", 97, "minimum_accuracy.fnn: expected x <= 1.0, got 97"),
    ("tolerance", 2.0, "tolerance: expected x <= 1.0, got 2.0"),
    ("int8.calibration_images", 1_000_000, "int8.calibration_images: expected x <= 100000, got 1000000"),
    ("license", "", "license: expected string should have at least 1 character, got ''"),
]
INVALID_BEYOND_THE_SCHEMA = [  # what a JSON Schema cannot express
    ("recipes.default.fnn.learning_rate", float("nan"), "fnn.learning_rate: expected a finite number, got nan"),
    ("recipes.default.fnn.learning_rate", float("inf"), "fnn.learning_rate: expected a finite number, got inf"),
    ("networks.fnn.hidden", [16_384] * 2, "networks.fnn: expected at most 100,000,000 weights, got 281,280,512"),
    ("networks.cnn.hidden", [], "default.cnn.dropout: expected 0, as networks.cnn has no hidden layer, got 0.2"),
    ("models", ["fnn", "resnet"], "models: expected names under networks (fnn, cnn, keras_fnn, keras_cnn), got 'resne"),
    ("models", ["keras_fnn"], "recipes.default.keras_fnn: expected the model's recipe, got none; default has fnn, cnn"),
    ("recipe", "quick", "recipe: expected default or fast or notebook, got 'quick'"),
    ("minimum_accuracy", {"fnn": 0.5}, "minimum_accuracy.cnn: expected a number from 0 to 1, got none"),
]
RENAMED = {
    "recipes.default.fnn.distortion": "augmentation",
    "recipes.default.fnn.distort_until": "augment_until",
    "recipes.default.fnn.warm_up": "warmup_fraction",
    "data.validation": "validation_fraction",
    "int8.accuracy_loss": "max_accuracy_drop",
    "int8.max_accuracy_loss": "max_accuracy_drop",
    "robustness": "perturbations",
    "licence": "license",
}


@pytest.fixture(scope="module")
def is_valid():
    """A function that validates parameters by the JSON Schema."""
    return jsonschema_rs.validator_for(params.Params.model_json_schema()).is_valid


def values() -> dict:
    """Return the workspace's parameters."""
    return YAML(typ="safe").load(params.FILE)


def error() -> str:
    """Return the error of invalid parameters."""
    with pytest.raises(UserError) as raised:
        params.load_params()
    return str(raised.value)


def test_the_projects_parameters_are_valid(monkeypatch, is_valid):
    monkeypatch.chdir(PROJECT)
    assert params.load_params().models == ["fnn", "cnn"]
    assert is_valid(values())


@pytest.mark.parametrize(("key", "value", "line"), INVALID, ids=[key[:50] for key, *_ in INVALID])
def test_an_invalid_value_is_one_line_and_rejected_by_the_schema(workspace, change, is_valid, key, value, line):
    change({key: value})
    message = error()
    assert message.startswith("params.yaml: ") and line in message
    assert "\n" not in message
    assert not is_valid(values())


@pytest.mark.parametrize(("key", "value", "line"), INVALID_BEYOND_THE_SCHEMA)
def test_what_the_schema_cannot_reject_is_one_line_too(workspace, change, key, value, line):
    change({key: value})
    message = error()
    assert message.startswith("params.yaml: ") and line in message
    assert "\n" not in message


@pytest.mark.parametrize("key", RENAMED)
def test_a_renamed_key_is_named_with_its_new_name(workspace, change, is_valid, key):
    change({key: 0.5})
    section, _, old = key.rpartition(".")
    prefix = f"params.yaml: {section}: " if section else "params.yaml: "
    assert error() == f"{prefix}expected {RENAMED[key]}, the new name of this key, got {old}"
    assert not is_valid(values())


def test_a_missing_key_is_named_and_rejected_by_the_schema(workspace, is_valid):
    remove_param(params.FILE, "seed")
    assert error() == "params.yaml: seed: expected a value, got none"
    assert not is_valid(values())


def test_each_mistake_has_its_own_line(workspace, change):
    change({"seed": -1, "tolerance": -1.0})
    assert error().splitlines() == [
        "params.yaml: seed: expected x >= 0, got -1",
        "params.yaml: tolerance: expected x >= 0.0, got -1.0",
    ]


@pytest.mark.parametrize("text", ["models: [fnn", "seed: 1\nseed: 2\n", "- a\n- b\n", ""])
def test_a_file_that_is_not_a_mapping_is_one_line(workspace, text):
    params.FILE.write_text(text)
    assert error().startswith("params.yaml: expected ")
    assert len(error().splitlines()) == 1


def test_a_missing_file_is_one_line(workspace):
    params.FILE.unlink()
    assert error() == "params.yaml: No such file or directory"


def test_the_check_stage_writes_the_schema(workspace):
    check.main()
    assert artifacts.read_json(artifacts.PARAMS_SCHEMA) == params.Params.model_json_schema()


@pytest.mark.parametrize("name", [artifacts.TRAIN_LABELS, artifacts.TEST_LABELS])
def test_the_check_stage_compares_the_classes_with_the_downloaded_labels(workspace, change, name):
    idx.write_idx(artifacts.DATA / name, np.array([0, 1, 10]))
    check.main()  # the file is of another data set, as data.sha256 has another digest
    change({"data.sha256": digests(artifacts.DATA)})
    with pytest.raises(UserError, match=f"^{name}: expected labels from 0 to 9, as data.classes .*, got 10$"):
        check.main()


def test_two_classes_for_ten_labels_are_a_user_error_before_the_download_stage(workspace, change):
    change({"data.classes": ["zero", "one"]})
    with pytest.raises(UserError, match="^train-labels-idx1-ubyte: expected labels from 0 to 1, .*, got 9$"):
        check.main()


@pytest.mark.parametrize(
    ("overrides", "removed", "added"),
    [
        (["seed=1"], ["seed: 0 "], ["seed: 1 "]),
        (["recipe=fast"], ["recipe: default "], ["recipe: fast "]),
        (["models=[fnn,cnn,keras_fnn]"], [], ["- keras_fnn"]),
        (
            ["recipes.default.fnn.learning_rate=0.5", "device=cpu"],
            ["device: auto ", "      learning_rate: 1.2 "],
            ["device: cpu ", "      learning_rate: 0.5 "],
        ),
    ],
)
def test_dvc_exp_run_rewrites_only_the_changed_lines(tmp_path, overrides, removed, added):
    file = Path(shutil.copy(PROJECT / params.FILE, tmp_path))
    before = file.read_text().splitlines()
    apply_overrides(file, overrides)
    difference = [line for line in difflib.ndiff(before, file.read_text().splitlines()) if line[0] in "-+"]
    for sign, lines in (("- ", removed), ("+ ", added)):
        found = [line.removeprefix(sign) for line in difference if line.startswith(sign)]
        assert len(found) == len(lines)
        assert all(line.startswith(start) for line, start in zip(found, lines))


@pytest.mark.parametrize("content", ["seed: 2026-01-45", "seed: !!int abc", f"seed: {'[' * 5000}", "seed: ["])
def test_content_that_is_no_yaml_is_a_user_error(workspace, content):
    params.FILE.write_text(content)
    with pytest.raises(UserError, match="^params.yaml: expected YAML, got: "):
        params.load_params()
