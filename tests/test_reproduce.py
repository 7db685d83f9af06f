import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from checks import lock, reproduce
from checks.reproduce import CLOSE, EQUAL, FAILED, Results
from stages import artifacts
from tests.conftest import commit, edit_params, environment

EVALUATION = artifacts.evaluation("cnn")
ENVIRONMENT = artifacts.training_environment("cnn")


def results(
    data: str = "d0", weights: str = "a0", labels: str = "l0", accuracy: float = 0.99, **differences: str | int
) -> Results:
    """Return the results of a pipeline with these digests and this accuracy, and differences in its environment."""
    digests = {
        ("download", "artifacts/data"): data,
        ("train@cnn", "artifacts/cnn/weights.safetensors"): weights,
        ("export@cnn", str(artifacts.labels("cnn"))): labels,
    }
    accuracies = {EVALUATION: {"accuracy": accuracy, "accuracy_low": 0.98, "accuracy_high": 0.995}}
    return Results(digests, accuracies, {ENVIRONMENT: {"device": "cpu", "processor": "A", "threads": 2} | differences})


@pytest.mark.parametrize(
    ("reproduced", "status"),
    [
        (results(), EQUAL),
        (results(weights="b1", accuracy=0.981), CLOSE),
        (results(weights="b1", accuracy=0.97), FAILED),
        (results(weights="b1", accuracy=0.999), FAILED),
        (results(data="e1", weights="b1"), FAILED),
        (results(labels="b1"), FAILED),
        (Results({}, {}, {}), FAILED),
        (Results(results().digests | {("train@fnn", "artifacts/fnn/weights"): "c0"}, results().accuracies, {}), FAILED),
    ],
)
def test_the_exit_status_says_whether_outputs_are_equal_close_or_neither(reproduced, status):
    assert reproduce.exit_status(results(), reproduced) == status


def test_the_table_has_all_digests_and_the_accuracies_that_differ():
    table = reproduce.comparison_table(results(), results(weights="b1", accuracy=0.97))
    assert "| artifacts/data | d0 | d0 | equal |" in table
    assert "| artifacts/cnn/weights.safetensors | a0 | b1 | DIFFERS |" in table
    assert f"| {EVALUATION} | 99.00% | 98.00% to 99.50% | 97.00% | OUTSIDE |" in table


def test_equal_results_have_no_table_of_accuracies_and_no_environments():
    table = reproduce.comparison_table(results(), results())
    assert "accuracy" not in table
    assert str(ENVIRONMENT) not in table


@pytest.mark.parametrize(
    ("differences", "lines"),
    [
        ({"threads": 8}, ["threads: locked 2, reproduced 8"]),
        ({"processor": "B"}, ["processor: locked A, reproduced B"]),
        ({"processor": "B", "threads": 8}, ["processor: locked A, reproduced B", "threads: locked 2, reproduced 8"]),
    ],
)
def test_what_differs_in_the_environment_has_a_line(differences, lines):
    found = reproduce.comparison_table(results(), results(weights="b1", **differences)).splitlines()
    assert [line for line in found if line.startswith(str(ENVIRONMENT))] == [f"{ENVIRONMENT}: {line}" for line in lines]


def test_a_lock_of_a_gpu_has_no_number_of_threads():
    on_gpu = Results({}, {}, {ENVIRONMENT: {"device": "NVIDIA H100"}})
    assert reproduce.locked_threads(on_gpu) == {}
    assert reproduce.locked_threads(results()) == {"OMP_NUM_THREADS": "2"}


@pytest.mark.slow
def test_the_commit_is_reproduced_from_nothing_with_the_locked_threads(clone):
    """One locked digest is false; every other output is equal, although this process asks for two threads."""
    edit_params(clone / "params.yaml", {"models": ["fnn"]})
    schema = str(artifacts.PARAMS_SCHEMA)
    digest, false = lock.locked_digests(clone)["check", schema], "f" * 32
    yaml = YAML()
    locked = yaml.load(clone / lock.FILE)
    locked["stages"] = {name: stage for name, stage in locked["stages"].items() if not name.endswith("@cnn")}
    locked["stages"]["check"]["outs"][0]["md5"] = false
    yaml.dump(locked, clone / lock.FILE)
    commit(clone)
    command = [sys.executable, "-m", "checks.reproduce"]
    two_threads = environment() | {"OMP_NUM_THREADS": "2"}
    assert artifacts.read_json(clone / artifacts.training_environment("fnn"))["threads"] == 1
    ended = subprocess.run(command, cwd=clone, env=two_threads, capture_output=True, text=True)
    assert ended.returncode == FAILED, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| artifacts")]
    assert f"| {schema} | {false} | {digest} | DIFFERS |" in rows
    assert len(rows) == len(lock.locked_digests(clone))
    assert [row for row in rows if not row.endswith("| equal |")] == [f"| {schema} | {false} | {digest} | DIFFERS |"]
