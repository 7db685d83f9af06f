"""Search for hyperparameters with Optuna, in the space of search.yaml.

A trial trains on one thread and reports the validation accuracy of each epoch, by which the pruner stops the hopeless.
Any number of workers, each one process of this command, share a storage: start as many as there are CPUs, on as many
machines as reach it. If a worker is killed, another one runs its trial again. The test set is not used.
"""

import argparse
import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from ruamel.yaml import YAML
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from experiments import space
from experiments.seeds import SEEDS, compare, parse_seeds
from experiments.space import Search, Value
from stages import artifacts, command, devices, params, train
from stages.checkpoint import Checkpoint, compute_fingerprint
from stages.errors import UserError, one_line

STORAGE = "sqlite:///search.db"
CHECKPOINTS = Path("build/search")
HEARTBEAT_SECONDS = 10
LOCK_SECONDS = 60  # of waiting while another worker writes into an SQLite file
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def main() -> None:
    options = parse_options()
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    search = space.load_search()
    study = open_study(search, options.storage)
    print(f"study {study.study_name} in {hide_password(options.storage)}")
    run_trials(study, search, options.trials)
    print(describe_best(study))
    if options.apply:
        apply_best(study, search, options.seeds)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.search", description=__doc__)
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="finished trials of all workers together")
    parser.add_argument("--storage", default=STORAGE, metavar="URL", help="database that all workers share")
    parser.add_argument(
        "--apply", action="store_true", help="compare the best with the committed parameters over seeds, and write it"
    )
    parser.add_argument("--seeds", type=parse_seeds, default=SEEDS, metavar="N,N,…", help="seeds for --apply")
    return parser.parse_args()


def open_study(search: Search, storage: str) -> Study:
    """Return the study of this space and these parameters, which is created if there is none.

    Its first trial has the parameters in params.yaml.
    """
    parameters = params.load_params(search.model)
    settings = {
        "search": search.model_dump(exclude={"sampler", "pruner"}),
        "params": parameters.model_dump(exclude={"device", "threads", "models"}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    study = optuna.create_study(
        study_name=f"{search.model}-{digest[:8]}",
        storage=connect(storage),
        sampler=create_sampler(search.sampler),
        pruner=create_pruner(search.pruner, parameters.recipes[parameters.recipe][search.model].epochs),
        direction="maximize",
        load_if_exists=True,
    )
    committed = params.read_yaml(params.FILE)
    values = {key: space.get_value(committed, key) for key in search.space}
    study.enqueue_trial(
        {key: value for key, value in values.items() if search.space[key].contains(value)}, skip_if_exists=True
    )
    return study


def create_sampler(name: str) -> BaseSampler:
    """Return the sampler of this name."""
    if name == "tpe":
        return TPESampler(multivariate=True, constant_liar=True)  # for trials that run at the same time
    return GPSampler() if name == "gp" else RandomSampler()


def create_pruner(name: str, epochs: int) -> BasePruner:
    """Return the pruner of this name for trainings of this length."""
    if name == "median":
        return MedianPruner(n_warmup_steps=epochs // 2)  # before, a high learning rate hides what is to come
    return HyperbandPruner() if name == "hyperband" else NopPruner()


def connect(url: str, attempts: int = 5) -> RDBStorage:
    """Return the database, with its tables. Raises UserError if it cannot be reached."""
    engine = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {}
    retry = RetryHeartbeatStaleTrialCallback()
    try:
        return RDBStorage(url, engine, heartbeat_interval=HEARTBEAT_SECONDS, heartbeat_stale_trial_callback=retry)
    except (ImportError, SQLAlchemyError, StorageInternalError) as error:
        if attempts == 1:
            message = f"storage: expected the URL of a database, got {hide_password(url)}"
            raise UserError(f"{message}: {one_line(error)}") from error
    time.sleep(1)  # another worker may have been creating the tables
    return connect(url, attempts - 1)


def hide_password(url: str) -> str:
    """Return a database's URL with *** instead of its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:  # no URL
        return url


def run_trials(study: Study, search: Search, count: int) -> None:
    """Run trials until this number has finished, those of other workers included."""
    train.configure_torch(threads=1)
    committed = params.read_yaml(params.FILE)  # once, so that an edit during the search changes no trial

    def objective(trial: Trial) -> float:
        try:
            return run_trial(search, committed, trial)
        except KeyboardInterrupt:
            study.enqueue_trial(trial.params)  # for the next worker
            optuna.logging.set_verbosity(optuna.logging.ERROR)  # no warning with a traceback
            raise

    if len(study.get_trials(deepcopy=False, states=FINISHED)) < count:
        study.optimize(objective, callbacks=[MaxTrialsCallback(count, states=FINISHED)])


def run_trial(search: Search, committed: dict[str, object], trial: Trial) -> float:
    """Return the validation accuracy of a training with the trial's changes of the content of params.yaml.

    Raises TrialPruned if it is stopped early. A trial that runs again on the same machine resumes from its checkpoint.
    """
    changes = {key: dimension.suggest(trial, key) for key, dimension in search.space.items()}
    parameters = space.change_params(committed, changes)
    recipe = parameters.recipes[parameters.recipe][search.model]
    device = devices.select_device(parameters.device)
    network, data = train.prepare_training(search.model, parameters, recipe, parameters.seed)
    fingerprint = compute_fingerprint(search.model, parameters, device)
    checkpoint = Checkpoint(CHECKPOINTS / fingerprint[:16], fingerprint)
    accuracy = 0.0
    try:
        for epoch, metrics in enumerate(train.fit(network, data.to(device), recipe, parameters.seed, checkpoint)):
            accuracy = metrics["val_accuracy"]
            trial.report(accuracy, epoch + 1)
            if trial.should_prune():
                artifacts.remove(checkpoint.path)
                raise TrialPruned
    except UserError as error:  # a loss that is not finite
        raise TrialPruned(str(error)) from error
    artifacts.remove(checkpoint.path)
    return accuracy


def describe_best(study: Study) -> str:
    """Return the parameters of the best trial, as lines. Raises UserError if no trial is complete."""
    counts = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    if not counts[TrialState.COMPLETE]:
        raise UserError(f"{study.study_name}: expected a complete trial, got none; run more --trials")
    best = study.best_trial
    summary = f"{counts[TrialState.COMPLETE]} trials complete, {counts[TrialState.PRUNED]} pruned"
    lines = [f"{summary}; best: trial {best.number}, validation accuracy {best.value:.4f}"]
    return "\n".join(lines + [f"  {key}: {value}" for key, value in best.params.items()])


def apply_best(study: Study, search: Search, seeds: list[int]) -> None:
    """Compare the best trial's parameters with the committed ones over seeds, and write them into params.yaml."""
    best = study.best_params
    changes = [f"{key}={value}" for key, value in best.items()]
    print(compare(changes, [f"evaluate@{search.model}"], seeds))
    write_params(best)
    print(f"{params.FILE}: changed; `git diff` shows it, `make repro` builds the models with it")


def write_params(changes: Mapping[str, Value]) -> None:
    """Change values in params.yaml by their dotted keys, and keep its comments."""
    yaml = YAML()
    yaml.preserve_quotes = True
    values = yaml.load(params.FILE)
    for key, value in changes.items():
        space.set_value(values, key, value)
    with artifacts.atomic_write(params.FILE) as file:
        yaml.dump(values, file)


if __name__ == "__main__":
    command.call(main)
