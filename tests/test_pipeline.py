"""The whole pipeline in miniature: real `dvc repro` in a temporary clone of the project."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from stages import artifacts
from tests.conftest import STAGES, edit_params, environment, repro, run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (folder / artifacts.ROOT).rglob("[!.]*") if path.is_file()}


def test_every_declared_result_is_there_and_small_ones_are_in_git(built):
    tracked = set(run(built, "git", "ls-files", "artifacts").stdout.split())
    for model in ("fnn", "cnn"):
        for path in (
            artifacts.evaluation(model),
            artifacts.per_class(model),
            artifacts.confusion(model),
            artifacts.robustness(model),
            artifacts.verification(model),
            artifacts.verification_int8(model),
            artifacts.card(model),
            artifacts.card(artifacts.int8(model)),
            artifacts.training(model) / "metrics.json",
        ):
            assert str(path) in tracked
        for path in (
            artifacts.weights(model),
            artifacts.mistakes(model),
            artifacts.differences(model),
            artifacts.differences_int8(model),
            artifacts.onnx(model),
            artifacts.onnx(artifacts.int8(model)),
            artifacts.triton_config(model),
            artifacts.class_names(model),
            artifacts.checksums(model),
        ):
            assert (built / path).is_file()
            assert str(path) not in tracked


def test_nothing_runs_when_nothing_changed(clone):
    assert repro(clone) == set()
    assert run(clone, "dvc", "status").stdout == "Data and pipelines are up to date.\n"


def test_a_fresh_clone_evaluates_and_verifies_what_it_reproduces(clone):
    shutil.rmtree(clone / ".dvc" / "cache")
    run(clone, "git", "clean", "-fdX", "artifacts")
    stages = {f"{stage}@fnn" for stage in STAGES if stage != "card"}
    assert repro(clone, "evaluate@fnn", "verify@fnn", "verify_int8@fnn") == {"download"} | stages
    assert run(clone, "git", "status", "--porcelain").stdout == ""


def test_a_learning_rate_retrains_its_model_alone(clone):
    edit_params(clone / "params.yaml", {"recipes.default.fnn.learning_rate": 0.05})
    assert repro(clone, "train@fnn", "verify@cnn", "evaluate@cnn") == {"check", "train@fnn"}


def test_a_change_of_the_evaluation_retrains_nothing(clone):
    with (clone / "stages" / "evaluate.py").open("a") as code:
        code.write("# changed\n")
    assert repro(clone, "--dry") == {"evaluate@fnn", "evaluate@cnn"}


def test_removed_results_come_back_from_the_cache(clone):
    before = contents(clone)
    shutil.rmtree(clone / "artifacts" / "cnn")
    assert repro(clone) == set()
    assert contents(clone) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipes.default.cnn.dropout", 1.5, "recipes.default.cnn.dropout is 1.5: input should be less than 1"),
        ("data.sources", ["./nowhere"], "no source delivers the data set"),
    ],
)
def test_a_mistake_in_the_parameters_costs_no_earlier_result(clone, key, value, message):
    before = contents(clone)
    edit_params(clone / "params.yaml", {key: value})
    ended = run(clone, "dvc", "repro")
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert contents(clone) == before


def test_a_killed_repro_goes_on_from_its_last_epoch_to_the_same_bytes(clone):
    edit_params(clone / "params.yaml", {"recipes.default.fnn.epochs": 60, "recipes.default.fnn.batch_size": 8})
    repro(clone, "train@fnn")
    expected = contents(clone)
    repro_again = ["dvc", "repro", "--force", "--single-item", "train@fnn"]

    in_shell = environment() | {"SHELL": "/bin/sh"}  # which may stay between DVC and the stage, and outlive DVC
    dvc = subprocess.Popen(repro_again, cwd=clone, env=in_shell, stdout=subprocess.DEVNULL)
    while not (clone / artifacts.checkpoint("fnn")).exists():
        assert dvc.poll() is None
        time.sleep(0.01)
    dvc.kill()
    dvc.wait()
    out = run(clone, *repro_again).stdout
    assert "going on after epoch" in out
    assert "epoch  1/60" not in out
    assert contents(clone) == expected


def test_damaged_results_are_restored(clone):
    before = contents(clone)
    for path in (artifacts.DATA / artifacts.TEST_LABELS, artifacts.weights("fnn"), artifacts.onnx("cnn")):
        (clone / path).write_bytes(b"damaged")
    assert repro(clone) == {"download"}  # the rest comes from the cache
    assert contents(clone) == before


def test_metrics_plots_and_models_are_declared(clone):
    metrics = run(clone, "dvc", "metrics", "show", "--json").stdout
    assert "artifacts/cnn/evaluation.json" in metrics
    assert "calibration_error" in metrics
    plots = run(clone, "dvc", "plots", "show")
    assert plots.returncode == 0
    assert "failed" not in plots.stderr
    page = (clone / "dvc_plots" / "index.html").read_text()
    for title in ("fnn loss", "cnn accuracy", "confusion.csv", "per_class.csv", "robustness.csv", "mistakes.png"):
        assert title in page
