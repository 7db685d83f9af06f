"""The whole pipeline in miniature: `dvc repro` in a clone of the project with a small data set."""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from checks import lock
from stages import artifacts, import_graph, train
from tests.conftest import PROJECT, STAGES, call, commit, edit_params, environment, repro, run

TRAIN = ["repro", "--single-item", "train@fnn"]


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file in artifacts/, except hidden ones."""
    files = (path for path in (folder / artifacts.ROOT).rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.parametrize("stage", ["check", "download", *STAGES])
def test_the_dependencies_in_dvc_yaml_are_the_modules_that_the_stage_imports(stage):
    definition = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"][stage]
    declared = [path for path in definition["deps"] if path.endswith(".py")]
    imported = import_graph.imported_modules(PROJECT / "stages" / f"{stage}.py")
    assert sorted(declared) == [path.as_posix() for path in imported]


def test_every_output_exists_and_small_ones_are_in_git(built):
    tracked = set(call(built, "git", "ls-files", "artifacts").split())
    for model in ("fnn", "cnn"):
        for path in (
            artifacts.evaluation(model),
            artifacts.metrics(model),
            artifacts.metrics_int8(model),
            artifacts.per_class(model),
            artifacts.confusion(model),
            artifacts.robustness(model),
            artifacts.verification(model),
            artifacts.verification_int8(model),
            artifacts.model_card(model),
            artifacts.bom(model),
            artifacts.model_card(artifacts.int8_name(model)),
            artifacts.bom(artifacts.int8_name(model)),
            artifacts.training(model) / "metrics.json",
            artifacts.training_environment(model),
        ):
            assert str(path) in tracked
        for path in (
            artifacts.weights(model),
            artifacts.mistakes(model),
            artifacts.differences(model),
            artifacts.differences_int8(model),
            artifacts.onnx(model),
            artifacts.onnx(artifacts.int8_name(model)),
            artifacts.triton_config(model),
            artifacts.labels(model),
            artifacts.checksums(model),
        ):
            assert (built / path).is_file()
            assert str(path) not in tracked
    assert ("download", "artifacts/data") in lock.locked_digests(built)
    assert not list((built / artifacts.ROOT).rglob(".checkpoint"))


def test_nothing_runs_when_nothing_changed(clone):
    assert repro(clone) == set()
    assert call(clone, "dvc", "status") == "Data and pipelines are up to date.\n"


def test_a_fresh_clone_verifies_its_models_although_the_result_is_in_git(clone, built):
    shutil.rmtree(clone / ".dvc" / "cache")
    call(clone, "git", "clean", "-fdXq", "artifacts")
    shutil.copytree(built / artifacts.DATA, clone / artifacts.DATA)
    for path in (artifacts.weights("fnn"), artifacts.onnx("fnn")):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(built / path, clone / path)
    assert repro(clone, "--single-item", "verify@fnn") == {"verify@fnn"}
    assert call(clone, "git", "status", "--porcelain") == ""


def test_a_change_of_a_learning_rate_trains_only_its_model(clone):
    edit_params(clone / "params.yaml", {"recipes.default.fnn.learning_rate": 0.05})
    assert repro(clone, "--dry", "train", "evaluate@cnn", "verify@cnn") == {"check", "train@fnn"}


def test_a_change_of_the_evaluation_trains_nothing(clone):
    with (clone / "stages" / "evaluate.py").open("a") as code:
        code.write("# changed\n")
    assert repro(clone, "--dry") == {"evaluate@fnn", "evaluate@cnn"}


def test_removed_outputs_are_restored_from_the_cache(clone):
    before = contents(clone)
    shutil.rmtree(clone / "artifacts" / "cnn")
    assert repro(clone) == set()
    assert contents(clone) == before


def test_damaged_outputs_are_restored(clone):
    before = contents(clone)
    for path in (artifacts.DATA / artifacts.TEST_LABELS, artifacts.weights("fnn"), artifacts.onnx("cnn")):
        (clone / path).write_bytes(b"damaged")
    assert repro(clone) == {"download"}  # DVC restores the others from its cache
    assert contents(clone) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipes.default.cnn.dropout", 1.5, "recipes.default.cnn.dropout: expected x < 1.0, got 1.5"),
        ("data.classes", ["0", "1"], "expected labels from 0 to 1, as data.classes in params.yaml has 2 names, got 9"),
        ("data.sources", ["./nowhere"], "expected the data set from one of data.sources, got none"),
    ],
)
def test_an_invalid_parameter_keeps_all_earlier_outputs(clone, key, value, message):
    before = contents(clone)
    edit_params(clone / "params.yaml", {key: value})
    ended = run(clone, "dvc", "repro")
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert contents(clone) == before


def test_a_killed_repro_resumes_from_its_last_epoch_to_the_same_bytes(clone):
    edit_params(clone / "params.yaml", {"recipes.default.fnn.epochs": 10, "recipes.default.fnn.batch_size": 8})
    with contextlib.chdir(clone):
        train.main("fnn")
    expected = contents(clone)
    artifacts.remove(clone / artifacts.checkpoint("fnn"))
    artifacts.remove(clone / artifacts.weights("fnn"))

    in_shell = environment() | {"SHELL": "/bin/sh"}  # the stage's process outlives DVC and its shell
    dvc = subprocess.Popen(["dvc", *TRAIN], cwd=clone, env=in_shell, stdout=subprocess.DEVNULL)
    while not (clone / artifacts.checkpoint("fnn")).exists():
        assert dvc.poll() is None
        time.sleep(0.01)
    dvc.kill()
    dvc.wait()
    out = call(clone, "dvc", *TRAIN)
    assert "resuming after epoch" in out
    assert "epoch  1/10" not in out
    assert contents(clone) == expected


def test_the_last_commit_is_restored_after_another_model_was_built(clone):
    before = contents(clone), call(clone, "git", "status", "--porcelain", "--ignored")
    edit_params(clone / "params.yaml", {"models": ["fnn", "keras_fnn"], "recipe": "notebook"})
    edit_params(clone / "params.yaml", {"recipes.notebook.keras_fnn.epochs": 1})
    assert repro(clone, "--single-item", "train@keras_fnn") == {"train@keras_fnn"}
    shutil.copytree(clone / artifacts.model_folder("fnn"), clone / artifacts.model_folder("keras_fnn"))
    assert "train@keras_fnn" in (clone / "dvc.lock").read_text()

    call(clone, "git", "restore", ".")
    call(clone, "python", "-m", "checks.prune")
    assert repro(clone) == set()
    assert (contents(clone), call(clone, "git", "status", "--porcelain", "--ignored")) == before


def test_the_last_commit_of_another_machine_keeps_the_results_of_this_one(clone):
    """On another processor the weights have other bytes; those of the commit's dvc.lock are in no cache here."""
    locked = lock.locked_digests(clone)
    digest = locked["train@fnn", str(artifacts.weights("fnn"))]
    (clone / "dvc.lock").write_text((clone / "dvc.lock").read_text().replace(digest, "f" * 32))
    commit(clone)
    before = contents(clone)

    out = call(clone, "python", "-m", "checks.prune")
    assert out == "dvc.lock: dropped train@fnn, whose outputs are not in DVC's cache\n"
    call(clone, "dvc", "checkout", "--force", "--allow-missing")
    assert repro(clone) == set()
    assert contents(clone) == before
    assert lock.locked_digests(clone) == locked


def test_metrics_and_plots_are_declared(clone):
    metrics = call(clone, "dvc", "metrics", "show", "--json")
    assert "artifacts/cnn/metrics.json" in metrics
    assert "artifacts/cnn/metrics_int8.json" in metrics
    assert "calibration_error" in metrics
    assert run(clone, "dvc", "plots", "show").stderr == ""
    page = (clone / "dvc_plots" / "index.html").read_text()
    titles = ["Loss: training", "Accuracy: training", "cnn: confusion matrix", "cnn: errors by class"]
    for title in [*titles, "cnn: robustness", "cnn_mistakes.png", "fnn_differences.png", "cnn_differences_int8.png"]:
        assert title in page
