"""Bills of materials of the models: what they are made from, in CycloneDX's JSON format.

https://cyclonedx.org/docs/1.6/json/
"""

import json
from typing import Any

import onnx
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from stages import artifacts, model_repository

SPEC_VERSION = "1.6"
Json = dict[str, Any]


def write_bom(name: str, facts: Json) -> None:
    """Write a model's bill of materials from the facts of its card: data set, frameworks, recipe, metrics, digests."""
    metadata = model_repository.read_metadata(onnx.load(artifacts.require_file(artifacts.onnx(name))))
    data = facts["data"]
    data_set: Json = {
        "type": "data",
        "bom-ref": f"data/{data.name}",
        "name": data.name,
        **licenses(data.license),
        "data": [{"type": "dataset", "name": data.name}],
        "components": [file_component(f"data/{data.name}", file, digest) for file, digest in data.sha256.items()],
    }
    model = model_component(name, data_set["bom-ref"], facts, metadata)
    materials = [data_set, *(package_component(*each) for each in json.loads(metadata["frameworks"]).items())]
    content = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"component": model},  # neither time nor serial number, so that the same model has the same file
        "components": materials,
        "dependencies": [{"ref": name, "dependsOn": [material["bom-ref"] for material in materials]}],
    }
    artifacts.write_json(artifacts.bom(name), content)
    print(artifacts.bom(name))


def model_component(name: str, data_set: str, facts: Json, metadata: dict[str, str]) -> Json:
    """Return the model as a component: its files with their digests, and its card."""
    component: Json = {
        "type": "machine-learning-model",
        "bom-ref": name,
        "name": name,
        "description": f"{facts['layers']}; {'int8' if facts['is_int8'] else 'float32'}",
        **licenses(metadata["license"]),
        "components": [file_component(name, file, digest) for file, digest in read_digests(name).items()],
        "modelCard": model_card(data_set, facts, metadata),
    }
    if facts["is_int8"]:
        source = facts["model"]
        hashes = [sha256(artifacts.sha256_digest(artifacts.onnx(source)))]
        ancestor = {"type": "machine-learning-model", "name": source, "hashes": hashes}
        component["pedigree"] = {"ancestors": [ancestor], "notes": metadata["quantization"]}
    return component


def model_card(data_set: str, facts: Json, metadata: dict[str, str]) -> Json:
    """Return CycloneDX's model card: layers, inputs and outputs, hyperparameters and metrics."""
    results = facts["results"]
    interval = {"lowerBound": str(results["accuracy_low"]), "upperBound": str(results["accuracy_high"])}
    metrics = [
        {"type": "accuracy", "value": str(results["accuracy"]), "slice": "test", "confidenceInterval": interval},
        {"type": "calibration_error", "value": str(results["calibration_error"]), "slice": "test"},
    ]
    for perturbation, accuracy in results["perturbed_accuracy"].items():
        metrics.append({"type": "accuracy", "value": str(accuracy), "slice": f"test, {perturbation}"})
    settings = {"seed": facts["seed"], "recipe": facts["recipe_name"], **facts["recipe"]}
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification",
            "modelArchitecture": facts["layers"],
            "datasets": [{"ref": data_set}],
            "inputs": [{"format": metadata["input"]}],
            "outputs": [{"format": output} for output in metadata["outputs"].split("; ")],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "properties": [{"name": f"training:{key}", "value": str(value)} for key, value in settings.items()],
    }


def licenses(name: str) -> Json:
    """Return the member of a component that states its license."""
    try:
        return {"licenses": [{"expression": canonicalize_license_expression(name)}]}
    except InvalidLicenseExpression:  # not one of SPDX
        return {"licenses": [{"license": {"name": name}}]}


def package_component(name: str, version: str) -> Json:
    """Return a Python package as a component."""
    url = f"pkg:pypi/{name}@{version}"
    return {"type": "framework", "bom-ref": url, "name": name, "version": version, "purl": url}


def file_component(owner: str, file: str, digest: str) -> Json:
    """Return a file with its SHA-256 digest as a component."""
    return {"type": "file", "bom-ref": f"{owner}/{file}", "name": file, "hashes": [sha256(digest)]}


def sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def read_digests(name: str) -> dict[str, str]:
    """Return the SHA-256 digests of a model's files, by path in its folder."""
    lines = artifacts.require_file(artifacts.checksums(name)).read_text(encoding="utf-8").splitlines()
    return {file: digest for digest, file in (line.split("  ", 1) for line in lines)}
