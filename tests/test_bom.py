"""Bills of materials, checked against CycloneDX's own schema."""

import json
from importlib.metadata import version

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from stages import artifacts, bom, params

MODELS = ["fnn", "fnn_int8", "cnn", "cnn_int8"]


def read_valid_bom(name: str) -> dict:
    """Return a model's bill of materials in the current folder, which the schema must allow."""
    text = artifacts.bom(name).read_text()
    error = JsonStrictValidator(SchemaVersion.from_version(bom.SPEC_VERSION)).validate_str(text)
    assert error is None, error
    content: dict = json.loads(text)
    return content


def digests(component: dict) -> dict[str, str]:
    """Return the SHA-256 digests of the files of a component."""
    return {file["name"]: file["hashes"][0]["content"] for file in component["components"]}


@pytest.fixture
def folder(built, monkeypatch):
    monkeypatch.chdir(built)


@pytest.mark.parametrize("name", MODELS)
def test_the_bill_names_data_set_frameworks_recipe_metrics_and_files(folder, name):
    content, parameters, model = read_valid_bom(name), params.load_params(), name.removesuffix("_int8")
    component, (data_set, *frameworks) = content["metadata"]["component"], content["components"]
    assert data_set["licenses"] == [{"expression": "CC-BY-SA-3.0"}]
    assert digests(data_set) == parameters.data.sha256
    packages = {"torch", "onnx"} | ({"onnxruntime"} if name != model else set())
    assert {package["purl"] for package in frameworks} == {f"pkg:pypi/{each}@{version(each)}" for each in packages}
    materials = [material["bom-ref"] for material in content["components"]]
    assert content["dependencies"] == [{"ref": name, "dependsOn": materials}]

    assert component["name"] == name
    assert component["licenses"] == [{"expression": "MIT"}]
    assert digests(component)["1/model.onnx"] == artifacts.sha256_digest(artifacts.onnx(name))
    card = component["modelCard"]
    hyperparameters = {entry["name"]: entry["value"] for entry in card["properties"]}
    recipe = parameters.recipes["default"][model]
    assert hyperparameters["training:learning_rate"] == str(recipe.learning_rate)
    assert hyperparameters["training:augmentation.rotation"] == str(recipe.augmentation.rotation)
    file = artifacts.evaluation(name) if name == model else artifacts.verification_int8(model)
    results, metrics = artifacts.read_json(file), card["quantitativeAnalysis"]["performanceMetrics"]
    accuracies = {metric["slice"]: float(metric["value"]) for metric in metrics if metric["type"] == "accuracy"}
    perturbed = {f"test, {name}": accuracy for name, accuracy in results["perturbed_accuracy"].items()}
    assert accuracies == {"test": results["accuracy"]} | perturbed


def test_an_int8_variant_names_the_model_that_it_was_made_from(folder):
    assert "pedigree" not in read_valid_bom("cnn")["metadata"]["component"]
    (ancestor,) = read_valid_bom("cnn_int8")["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": artifacts.sha256_digest(artifacts.onnx("cnn"))}]


def test_a_license_that_spdx_does_not_know_is_stated_by_its_name():
    assert bom.licenses("apache-2.0 or mit") == {"licenses": [{"expression": "Apache-2.0 OR MIT"}]}
    assert bom.licenses("#1: 'x'") == {"licenses": [{"license": {"name": "#1: 'x'"}}]}
