"""The Kubernetes manifest against the commands of docs/deployment.md and the layout of the model repository."""

import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import artifacts
from tests.conftest import PROJECT

UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}  # of Kubernetes's quantities


@pytest.fixture
def service() -> dict[str, Any]:
    return YAML(typ="safe").load(PROJECT / "deploy" / "inferenceservice.yaml")


@pytest.fixture
def page() -> str:
    return (PROJECT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_storage_uri_is_the_model_repository_that_the_commands_publish(service: dict[str, Any], page: str) -> None:
    (remote,) = re.findall("^dvc remote add v1 (.*)$", page, flags=re.MULTILINE)
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"{remote}/{artifacts.MODEL_REPOSITORY}"


def test_service_account_is_the_one_that_the_commands_create(service: dict[str, Any], page: str) -> None:
    account = service["spec"]["predictor"]["serviceAccountName"]
    assert f"kubectl create serviceaccount {account}\n" in page
    assert f"kubectl patch serviceaccount {account} " in page


def test_the_commands_name_the_service_and_its_deployment(service: dict[str, Any], page: str) -> None:
    name = service["metadata"]["name"]
    assert f"inferenceservice/{name}\n" in page
    assert f"deployment/{name}-predictor " in page  # KServe's name for it


def test_the_runtime_of_the_manifest_is_a_prerequisite(service: dict[str, Any], page: str) -> None:
    assert f"`{service['spec']['predictor']['model']['runtime']}`" in page


@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_resource_requests_are_within_the_limits(service: dict[str, Any], resource: str) -> None:
    resources = service["spec"]["predictor"]["model"]["resources"]
    assert quantity(resources["requests"][resource]) <= quantity(resources["limits"][resource])


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups()
    return float(number) * UNITS[unit]
