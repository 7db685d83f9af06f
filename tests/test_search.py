"""Search for hyperparameters."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from ruamel.yaml import YAML

from experiments import search, space
from stages import params
from stages.errors import UserError
from tests.conftest import PROJECT, call, commit, edit_params, environment, wait_until

STORAGE = "sqlite:///search.db"
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def change_params(project):
    return partial(edit_params, project / "params.yaml")


@pytest.fixture
def change_search(project):
    """Return a function that writes search.yaml with other entries, or with other dimensions in its space."""

    def write(space: dict | None = None, **entries) -> None:
        values = {"model": "fnn", "sampler": "tpe", "pruner": "none"} | entries
        values["space"] = space or {"recipes.default.fnn.learning_rate": {"low": 0.1, "high": 1.0}}
        YAML().dump(values, project / "search.yaml")

    return write


def test_the_projects_search_is_valid(monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert space.load_search().model == "fnn"


RATE = "recipes.default.fnn.learning_rate"


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"model": "x"}, "params.yaml: models: expected names under networks (fnn, cnn, "),
        ({"sampler": "grid"}, "search.yaml: sampler: expected 'tpe', 'gp' or 'random', got 'grid'"),
        ({"speed": 1}, "search.yaml: expected the keys model, sampler, pruner, space, got 'speed'"),
        ({"space": {RATE: {"low": 1.0}}}, f"search.yaml: space.{RATE}: expected choices or low <= high, got low 1.0 "),
        ({"space": {RATE: {"low": 2, "high": 1}}}, "expected choices or low <= high, got low 2 and high 1"),
        ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "expected low > 0 and no step, as log is true"),
        ({"space": {RATE: {"choices": [1.0], "low": 1}}}, "expected either choices or low and high, got both"),
        (
            {"space": {RATE: {"low": 1.0, "high": 200.0}}},
            f"search.yaml: space.{RATE}: params.yaml: {RATE}: expected x <= 100.0, got 200.0",
        ),
        (
            {"space": {"recipes.default.fnn.lr": {"choices": [0.1]}}},
            "search.yaml: space.recipes.default.fnn.lr: params.yaml: recipes.default.fnn: expected the keys epochs, ",
        ),
        (
            {"space": {"recipes.default.fnn.epochs": {"low": 1, "high": 9, "step": 2.5}}},
            "expected an integer step, as ",
        ),
        (
            {"space": {"recipes.default.fnn.other.epochs": {"choices": [1]}}},
            "params.yaml: expected a section recipes.default.fnn.other, got none",
        ),
        (
            {"space": {"recipes.fast.fnn.epochs": {"choices": [1]}}},
            "search.yaml: space.recipes.fast.fnn.epochs: expected a key of recipes.default.fnn or networks.fnn",
        ),
        ({"space": {"recipe": {"choices": ["fast"]}}}, "search.yaml: space.recipe: expected a key of recipes.default."),
    ],
)
def test_a_mistake_in_the_search_is_named(change_search, entries, error):
    change_search(**entries)
    with pytest.raises(UserError) as caught:
        space.load_search()
    assert error in str(caught.value)


def test_the_values_of_a_trial_have_the_types_of_the_space(change_search):
    change_search(
        {
            "recipes.default.fnn.epochs": {"low": 2, "high": 4},
            "recipes.default.fnn.learning_rate": {"low": 0.1, "high": 1, "log": True},
            "recipes.default.fnn.initialization": {"choices": ["pytorch", "glorot"]},
        }
    )
    found = space.load_search().space
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    epochs, rate, initialization = (dimension.suggest(trial, key) for key, dimension in found.items())
    assert epochs in (2, 3, 4) and isinstance(rate, float) and 0.1 <= rate <= 1
    assert initialization in ("pytorch", "glorot")


def test_the_first_trial_has_the_committed_parameters_that_are_in_the_space(project, change_search):
    change_search({RATE: {"low": 1, "high": 2.0}, "recipes.default.fnn.epochs": {"low": 1, "high": 2}})
    found = space.load_search()
    trial = search.open_study(found, STORAGE).ask()
    assert found.space[RATE].suggest(trial, RATE) == params.load_params().recipes["default"]["fnn"].learning_rate
    assert found.space["recipes.default.fnn.epochs"].suggest(trial, "recipes.default.fnn.epochs") in (1, 2)


def test_another_space_or_other_parameters_are_another_study(project, change_search, change_params):
    change_search()
    first = search.open_study(space.load_search(), STORAGE)
    assert search.open_study(space.load_search(), STORAGE).study_name == first.study_name
    change_search({RATE: {"low": 0.1, "high": 2.0}})
    second = search.open_study(space.load_search(), STORAGE)
    change_params({"recipes.default.fnn.epochs": 3})
    third = search.open_study(space.load_search(), STORAGE)
    assert len({first.study_name, second.study_name, third.study_name}) == 3


@pytest.mark.parametrize("url", ["sqlite:////no/folder/x.db", "x://y", "x"])
def test_a_storage_that_cannot_be_reached_is_a_user_error(url):
    with pytest.raises(UserError, match=f"storage: expected the URL of a database, got {url}: "):
        search.connect(url, attempts=1)


def test_a_password_is_not_printed():
    with pytest.raises(UserError) as caught:
        search.connect("postgresql://user:s3cret@127.0.0.1:1/database", attempts=1)
    assert "got postgresql://user:***@127.0.0.1:1/database: " in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_parameters_are_written_without_any_other_change(project):
    (project / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    commit(project)
    search.write_params({"recipes.default.fnn.learning_rate": 0.75, "recipes.fast.cnn.epochs": 3})
    changed = [
        line for line in call(project, "git", "diff", "-U0", "params.yaml").splitlines() if line[:2] in ("- ", "+ ")
    ]
    assert [" ".join(line.split("#")[0].split()) for line in changed] == [
        "- learning_rate: 1.2",
        "+ learning_rate: 0.75",
        "- epochs: 1",
        "+ epochs: 3",
    ]
    assert all("# peak of the one-cycle schedule" in line for line in changed[:2])


@contextlib.contextmanager
def worker(folder: Path, log: Path, *options: str) -> Iterator[subprocess.Popen]:
    """Run a worker, which writes its output into a file; kill it at the end."""
    command = [sys.executable, "-m", "experiments.search", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of the only study in the folder's storage, if there is one yet."""
    with contextlib.suppress(Exception):  # while a worker creates it
        storage = RDBStorage(f"sqlite:///{folder}/search.db", skip_compatibility_check=True, skip_table_creation=True)
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials
    return []


def is_early(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial of 150 epochs has its parameters, and will not end at once."""
    return trial.state is TrialState.RUNNING and 1 <= len(trial.intermediate_values) <= 100


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds: trainings take minutes on two busy cores
def test_two_workers_share_a_search_and_one_takes_the_trial_of_the_other_that_is_killed(project, change_search):
    change_search({RATE: {"low": 0.1, "high": 1.0}, "recipes.default.fnn.epochs": {"choices": [150]}})
    logs = [project / f"worker-{number}.log" for number in range(2)]
    with (
        worker(project, logs[0], "--trials", "20") as killed_worker,
        worker(project, logs[1], "--trials", "20") as other,
    ):
        wait_until(lambda: sum(map(is_early, trials(project))) == 2)
        killed_worker.kill()
        assert other.wait(timeout=300) == 0, logs[1].read_text()
    found = trials(project)
    states = [trial.state for trial in found]
    assert states.count(TrialState.FAIL) == 1
    assert states.count(TrialState.COMPLETE) >= 10
    killed = found[states.index(TrialState.FAIL)]
    (retried,) = [trial for trial in found if trial.system_attrs.get("failed_trial") == killed.number]
    assert (retried.state, retried.params) == (TrialState.COMPLETE, killed.params)
