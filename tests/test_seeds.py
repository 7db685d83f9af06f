"""Comparison of parameters over seeds, as DVC experiments."""

import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import joblib
import pytest

from experiments import seeds
from tests.conftest import call, environment, wait_until
from tests.test_checkpoint import accept_sigint


def test_the_difference_is_paired_by_seed_and_has_a_confidence_interval():
    committed = [{"fnn.accuracy": 0.98}, {"fnn.accuracy": 0.99}, {"fnn.accuracy": 0.97}]
    changed = [{"fnn.accuracy": 0.982}, {"fnn.accuracy": 0.991}, {"fnn.accuracy": 0.973}]
    # differences .002, .001, .003: mean .002, standard error .001 / sqrt(3), and t is 4.3027 for 2 degrees of freedom
    assert seeds.metrics_table([committed, changed]).splitlines()[2:] == [
        "| fnn.accuracy | 0.98000 ± 0.01000 | 0.98200 ± 0.00900 "
        "| +0.00200 | -0.00048 to +0.00448 | no difference seen |"
    ]


@pytest.mark.parametrize(("differences", "verdict"), [([1, 1.01], "higher"), ([-1, -1.01], "lower"), ([0, 0], "no ")])
def test_a_difference_is_seen_if_the_interval_excludes_0(differences, verdict):
    assert seeds.difference_cells(differences)[-1].startswith(verdict)


def test_metrics_that_do_not_depend_on_the_seed_are_left_out_and_those_on_validation_come_first():
    runs = [{"cnn.loss": 0.1, "fnn.loss": loss, "fnn.val_loss": 2 * loss} for loss in (0.1, 0.2)]
    assert [line.split(" | ")[0] for line in seeds.metrics_table([runs]).splitlines()[2:]] == [
        "| fnn.val_loss",
        "| fnn.loss",
    ]


def run_seeds(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.seeds", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("text", ["1", "1,1", "1,-2", "1,x", "", f"1,{2**32}"])
def test_invalid_seeds_are_refused(project, text):
    ended = run_seeds(project, f"--seeds={text}")
    assert ended.returncode == 2
    assert "expected two or more different integers >= 0, with commas" in ended.stderr


@pytest.mark.parametrize("change", ["seed=3", "threads=2", "++seed=3", "~seed", "params.yaml:seed=3"])
def test_changes_of_what_every_experiment_sets_are_refused(change):
    with pytest.raises(ArgumentTypeError, match="expected a parameter other than seed and threads, got "):
        seeds.parse_change(change)


@pytest.mark.parametrize("change", ["recipe=default,fast", "seed_of_another=range(1,3)"])
def test_a_change_to_several_values_is_refused(change):
    with pytest.raises(ArgumentTypeError, match="expected one value, got "):
        seeds.parse_change(change)


@pytest.mark.parametrize("change", ["recipe", "recipe = fast", ""])
def test_a_change_that_hydra_cannot_read_is_refused(project, change):
    ended = run_seeds(project, "-S", change)
    assert ended.returncode == 2
    assert f"expected KEY=VALUE, got {change!r}" in ended.stderr


def test_changes_are_passed_on_as_they_are_and_an_empty_target_is_refused():
    for change in ("models=[fnn,cnn]", "recipes.fast.fnn.momentum=0.5", "params.yaml:recipe=fast", "recipe='fast'"):
        assert seeds.parse_change(change) == change
    with pytest.raises(ArgumentTypeError, match="expected a stage, got ''"):
        seeds.parse_target("")


def test_the_name_of_an_experiment_depends_on_what_counts_only():
    one, other = "recipe=fast", "models=[fnn]"
    assert seeds.experiment_name([one, other], ["a", "b"], 1) == seeds.experiment_name([other, one], ["b", "a"], 1)
    assert seeds.experiment_name([one, "recipe=x"], [], 1) != seeds.experiment_name(["recipe=x", one], [], 1)


def test_uncommitted_changes_are_refused(project):
    with (project / "params.yaml").open("a") as file:
        file.write("\n")
    ended = run_seeds(project)
    assert (ended.returncode, ended.stderr) == (
        1,
        "seeds: workspace: expected the last commit, got changes of params.yaml\n",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds: trainings take minutes on two busy cores
def test_missing_experiments_run_in_the_queue_and_those_that_are_there_are_read(project):
    arguments = ("-S", "recipes.default.fnn.epochs=6", "evaluate@fnn")
    command = [sys.executable, "-m", "experiments.seeds", "--seeds", "5,7", *arguments]
    with (project.parent / "log").open("w+") as log:  # not a pipe, which DVC's workers would keep open
        interrupted = subprocess.Popen(
            command, cwd=project, env=environment(), stdout=log, stderr=log, preexec_fn=accept_sigint
        )
        running = project / ".dvc" / "tmp" / "exps" / "run"
        wait_until(lambda: len(list(running.glob("*/*.run"))) == min(4, joblib.cpu_count()))
        interrupted.send_signal(signal.SIGINT)  # as many experiments run as there are CPUs, the others are queued
        assert interrupted.wait(timeout=120) == 130
        log.seek(0)
        assert log.read().endswith("seeds: interrupted; run the same command again to continue\n")
    first = run_seeds(project, "--seeds", "5,7", *arguments)
    assert first.returncode == 0, first.stderr
    rows = first.stdout.splitlines()[2:]
    assert {row.split(" | ")[0] for row in rows} >= {"| fnn.val_accuracy", "| fnn.accuracy", "| fnn.robustness"}
    second = run_seeds(project, "--seeds", "5,7", *arguments)
    assert second.stdout == first.stdout
    experiments = call(project, "dvc", "exp", "list", "--name-only").split()
    assert sorted(name.rpartition("-seed-")[2] for name in experiments) == ["5", "5", "7", "7"]
    assert call(project, "git", "status", "--porcelain") == ""

    invalid = run_seeds(project, "--seeds", "5,7", "-S", "recipes.default.fnn.epochs=0", "evaluate@fnn")
    assert invalid.returncode == 1
    assert "check: params.yaml: recipes.default.fnn.epochs: expected x > 0, got 0 (`dvc queue logs" in invalid.stderr
