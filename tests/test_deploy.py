"""The manifests against KServe's published types, whose package is too heavy to install for this."""

import re

import pytest
from ruamel.yaml import YAML

from stages import artifacts
from tests.conftest import PROJECT

# the manifest's fields in kserve 0.21's V1beta1InferenceService and the types below it
RESOURCES = {"cpu": str, "memory": str}
MODEL = {
    "modelFormat": {"name": str},
    "runtime": str,
    "protocolVersion": str,
    "storageUri": str,
    "resources": {"requests": RESOURCES, "limits": RESOURCES},
}
INFERENCE_SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {"serving.kserve.io/deploymentMode": str}},
    "spec": {"predictor": {"serviceAccountName": str, "minReplicas": int, "maxReplicas": int, "model": MODEL}},
}
FOLDER = PROJECT / "deploy"


def types(value):
    """The fields of a document, with the types of their values."""
    return {key: types(field) for key, field in value.items()} if isinstance(value, dict) else type(value)


@pytest.fixture
def service() -> dict:
    return YAML(typ="safe").load(FOLDER / "inferenceservice.yaml")


@pytest.fixture
def commands() -> str:
    return (FOLDER / "README.md").read_text()


def test_the_service_has_the_fields_of_kserves_types(service):
    assert types(service) == INFERENCE_SERVICE
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")


def test_tritons_runtime_serves_the_folder_that_the_commands_publish(service, commands):
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["runtime"]) == ("triton", "kserve-tritonserver")
    assert model["protocolVersion"] == "v2"
    (remote,) = re.findall("^dvc remote add v1 (.*)$", commands, flags=re.MULTILINE)
    assert model["storageUri"] == f"{remote}/{artifacts.MODEL_REPOSITORY}"


def test_the_service_runs_in_the_account_that_the_commands_make(service, commands):
    account = service["spec"]["predictor"]["serviceAccountName"]
    assert f"kubectl create serviceaccount {account}\n" in commands
    assert f"deployment/{service['metadata']['name']}-predictor" in commands
