import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from checks import lock, reproduce
from checks.reproduce import CLOSE, EQUAL, FAILED, Results
from stages import artifacts
from tests.conftest import commit, edit_params, run

EVALUATION = Path("artifacts/cnn/evaluation.json")


def results(data: str = "d0", weights: str = "a0", labels: str = "l0", accuracy: float = 0.99) -> Results:
    digests = {
        ("download", "artifacts/data/images"): data,
        ("train@cnn", "artifacts/cnn/weights.safetensors"): weights,
        ("export@cnn", str(artifacts.class_names("cnn"))): labels,
    }
    return Results(digests, {EVALUATION: {"accuracy": accuracy, "accuracy_low": 0.98, "accuracy_high": 0.995}})


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (results(), EQUAL),
        (results(weights="b1", accuracy=0.981), CLOSE),
        (results(weights="b1", accuracy=0.97), FAILED),
        (results(weights="b1", accuracy=0.999), FAILED),
        (results(data="e1", weights="b1"), FAILED),
        (results(labels="b1"), FAILED),
        (Results({}, {}), FAILED),
        (Results(results().digests | {("train@fnn", "artifacts/fnn/weights"): "c0"}, results().measured), FAILED),
    ],
)
def test_the_status_tells_equal_from_close_from_neither(found, status):
    assert reproduce.judge(results(), found) == status


def test_the_table_shows_both_digests_and_the_accuracy_of_what_differs():
    table = reproduce.table(results(), results(weights="b1", accuracy=0.97))
    assert "| artifacts/data/images | d0 | d0 | equal |" in table
    assert "| artifacts/cnn/weights.safetensors | a0 | b1 | DIFFERS |" in table
    assert f"| {EVALUATION} | 99.00% | 98.00% to 99.50% | 97.00% | OUTSIDE |" in table


def test_nothing_but_digests_is_shown_when_all_is_equal():
    assert "accuracy" not in reproduce.table(results(), results())


def test_the_commit_is_run_from_nothing_and_every_output_compared(clone):
    edit_params(clone / "params.yaml", {"models": ["fnn"]})
    schema = str(artifacts.PARAMS_SCHEMA)
    true, false = lock.outputs(clone)["check", schema], "f" * 32
    yaml = YAML()
    locked = yaml.load(clone / lock.FILE)
    locked["stages"] = {name: stage for name, stage in locked["stages"].items() if not name.endswith("@cnn")}
    locked["stages"]["check"]["outs"][0]["md5"] = false
    yaml.dump(locked, clone / lock.FILE)
    commit(clone)
    ended = run(clone, sys.executable, "-m", "checks.reproduce")
    assert ended.returncode == FAILED, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| artifacts")]
    assert f"| {schema} | {false} | {true} | DIFFERS |" in rows
    outputs = lock.outputs(clone)
    assert len(rows) == len(outputs)
    assert sum(row.endswith("| equal |") for row in rows) == len(outputs) - 1
