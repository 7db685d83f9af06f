"""The Kubernetes manifests against KServe's types, the server, the commands of docs/deployment.md and the pipeline."""

import json
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
from ruamel.yaml import YAML

from experiments import search
from serving.__main__ import parse_arguments
from stages import artifacts
from tests.conftest import PROJECT, Server, environment

KSERVE = PROJECT / "build" / "kserve"  # .ci/run installs it there
SKYPILOT = PROJECT / "build" / "skypilot"  # this one, too
MODELS = "/mnt/models"  # where KServe mounts what it fetches from a bucket
HTTP_PORT, GRPC_PORT = 8080, 9000  # KServe's conventions

TRITON, OURS, RUNTIME = "inferenceservice.yaml", "inferenceservice-mnist-pipeline.yaml", "clusterservingruntime.yaml"
TYPES = {TRITON: "V1beta1InferenceService", OURS: "V1beta1InferenceService", RUNTIME: "V1alpha1ClusterServingRuntime"}

UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}  # of Kubernetes's quantities

# Read a type's name and manifests of it from stdin, and print these as KServe's client sends them to Kubernetes. The
# client looks all types up in kserve.models, which lacks those of Kubernetes.
ROUND_TRIP = """
import json, sys
from types import SimpleNamespace
import kserve.models, kubernetes.client
from kserve.api_client import ApiClient

vars(kserve.models).update(vars(kubernetes.client) | vars(kserve.models))
client = ApiClient()
name, manifests = json.load(sys.stdin)
objects = [client.deserialize(SimpleNamespace(data=json.dumps(manifest)), name) for manifest in manifests]
print(json.dumps(client.sanitize_for_serialization(objects)))
"""


def load_manifest(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(PROJECT / "deploy" / name)


def round_trip(name: str, *manifests: dict[str, Any]) -> list[dict[str, Any]]:
    """Return manifests of this type as KServe sends them: without unknown fields, with values of the fields' types."""
    if not KSERVE.is_dir():
        pytest.skip(f"needs KServe in {KSERVE.relative_to(PROJECT)}, where .ci/run installs it")
    output = subprocess.check_output(
        [sys.executable, "-c", ROUND_TRIP],
        env={"PYTHONPATH": str(KSERVE)},
        input=json.dumps([name, manifests]),
        text=True,
    )
    return json.loads(output, object_hook=without_empty)


def without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without the names of unnamed containers, which KServe sends as empty strings."""
    return {name: value for name, value in fields.items() if value != ""}


@pytest.fixture(params=[TRITON, OURS])
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load_manifest(request.param)


@pytest.fixture
def runtime() -> dict[str, Any]:
    return load_manifest(RUNTIME)


@pytest.fixture
def container(runtime: dict[str, Any]) -> dict[str, Any]:
    (container,) = runtime["spec"]["containers"]
    return container


@pytest.fixture
def page() -> str:
    return (PROJECT / "docs" / "deployment.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TYPES)
def test_kserve_knows_every_field_of_a_manifest_and_its_type(name: str) -> None:
    manifest = load_manifest(name)
    assert round_trip(TYPES[name], manifest) == [manifest]


def test_the_comparison_finds_a_field_that_kserve_does_not_know_and_a_wrong_type(runtime: dict[str, Any]) -> None:
    unknown, wrong = load_manifest(RUNTIME), load_manifest(RUNTIME)
    unknown["spec"]["containers"][0]["readyProbe"] = {}
    wrong["spec"]["containers"][0]["startupProbe"]["failureThreshold"] = "60"
    assert round_trip(TYPES[RUNTIME], unknown, wrong) == [runtime, runtime]


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


def test_the_runtime_of_the_triton_service_is_a_prerequisite(page: str) -> None:
    assert f"`{load_manifest(TRITON)['spec']['predictor']['model']['runtime']}`" in page


def test_the_runtime_supports_the_service_that_names_it(runtime: dict[str, Any]) -> None:
    model = load_manifest(OURS)["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [supported["name"] for supported in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_kserve_does_not_choose_the_runtime_for_services_that_name_no_runtime(runtime: dict[str, Any]) -> None:
    assert not any(supported.get("autoSelect") for supported in runtime["spec"]["supportedModelFormats"])


def test_the_runtime_starts_the_server_on_what_kserve_mounts_and_on_the_ports_that_it_expects(
    runtime: dict[str, Any], container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *container["args"]])
    arguments = parse_arguments()
    assert (str(arguments.repository), arguments.host, arguments.port) == (MODELS, "0.0.0.0", HTTP_PORT)
    assert arguments.grpc_port == GRPC_PORT
    assert runtime["spec"]["protocolVersions"] == ["v2", "grpc-v2"]


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_server_answers_the_probe(probe: str, container: dict[str, Any], server: Server) -> None:
    request = container[probe]["httpGet"]
    assert request["port"] == HTTP_PORT
    assert server.ask(request["path"])[0] == 200


def test_the_server_answers_prometheus(runtime: dict[str, Any], server: Server) -> None:
    annotations = runtime["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == str(HTTP_PORT)
    assert server.ask(annotations["prometheus.kserve.io/path"])[0] == 200


def test_the_container_meets_the_restricted_pod_security_standard_with_a_read_only_root(
    container: dict[str, Any],
) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_pod_is_killed_only_after_the_graceful_shutdown(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *container["args"]])
    delay = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = load_manifest(OURS)["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace > delay + parse_arguments().timeout


def test_the_commands_push_the_image_of_the_runtime(container: dict[str, Any], page: str) -> None:
    assert f"podman push {container['image']}\n" in page


@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_resource_requests_are_within_the_limits(container: dict[str, Any], resource: str) -> None:
    for resources in (container["resources"], load_manifest(TRITON)["spec"]["predictor"]["model"]["resources"]):
        assert quantity(resources["requests"][resource]) <= quantity(resources["limits"][resource])


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups()
    return float(number) * UNITS[unit]


SKYPILOT_TASK = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
print(json.dumps({"nodes": task.num_nodes, "envs": task.envs, "run": task.run}))
"""


@pytest.mark.slow
def test_skypilot_accepts_the_task_of_a_search_whose_command_has_these_options(tmp_path, monkeypatch):
    if not SKYPILOT.is_dir():
        pytest.skip("needs SkyPilot: .ci/run installs it")
    command = [sys.executable, "-c", SKYPILOT_TASK, str(PROJECT / "deploy" / "search.sky.yaml")]
    variables = environment() | {"PYTHONPATH": str(SKYPILOT), "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    task = json.loads(ended.stdout.splitlines()[-1])
    assert task["nodes"] == 2
    (line,) = [line for line in task["run"].splitlines() if "experiments.search" in line]
    _, options = line.replace("$TRIALS", task["envs"]["TRIALS"]).rstrip(" &").split("experiments.search ")
    monkeypatch.setattr(sys, "argv", ["search", *shlex.split(options)])
    assert vars(search.parse_options()).items() >= {"trials": 40, "storage": "$STORAGE"}.items()
