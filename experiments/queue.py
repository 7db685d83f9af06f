"""DVC's experiment queue: runs experiments in parallel, and reads their states."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from checks.process import capture
from stages.errors import UserError

POLL_SECONDS = 3.0
WORKER_START_SECONDS = 60.0
COLLECTION_SECONDS = 60.0  # in which DVC saves the results of an experiment whose process has ended
ATTEMPTS = 3  # of what fails if an experiment starts or ends at the same time
QUEUED, RUNNING, SUCCESS, FAILED = "queued", "running", "success", "failed"  # states, as DVC names them


@dataclass(frozen=True)
class Experiment:
    """An experiment that starts from the last commit."""

    revision: str
    state: str
    process: int | None  # ID of the one in which it runs or ran

    @property
    def is_aborted(self) -> bool:
        """Say whether DVC takes it for running although its process has ended, as after a restart of the machine."""
        return self.state == RUNNING and not is_alive(self.process)


def run_missing(commands: dict[str, list[str]], jobs: int) -> dict[str, Experiment]:
    """Run those experiments that are not there yet, `jobs` of them at a time, and return all of them by name.

    `commands` has the arguments of `dvc exp run` by the experiment's name. Failed experiments run again. Raises
    UserError if one fails.
    """
    found = read_experiments()
    aborted = [name for name, each in found.items() if each.is_aborted]
    for name in aborted:
        capture("dvc", "queue", "kill", name)
    failed = [name for name in commands if name in found and (name in aborted or found[name].state == FAILED)]
    if failed:
        capture("dvc", "queue", "remove", *failed)
    missing = [name for name in commands if name not in found or name in failed]
    for name in tqdm(missing, desc="queue", leave=False, disable=None):
        capture("dvc", "exp", "run", "--queue", "--name", name, *commands[name])
    found = wait_until_finished(commands, jobs)
    if failed := [name for name in commands if name not in found or found[name].state == FAILED]:
        reason = capture("dvc", "queue", "logs", failed[0]).partition("\nERROR: ")[0].splitlines()[-1]
        raise UserError(f"{failed[0]}: {reason} (`dvc queue logs {failed[0]}`)")
    return {name: found[name] for name in commands}


def wait_until_finished(names: Collection[str], jobs: int) -> dict[str, Experiment]:
    """Start workers, wait until these experiments have finished or one has failed, and return all by name.

    Ctrl-C stops the workers. Raises UserError if one is killed.
    """
    started, all_alive = -math.inf, time.monotonic()
    try:
        for found in poll_experiments(names):
            states = [found[name].state if name in found else FAILED for name in names]
            if states.count(SUCCESS) == len(names) or FAILED in states:
                break
            aborted = [name for name in names if found[name].is_aborted]
            if not aborted:
                all_alive = time.monotonic()
            elif time.monotonic() > all_alive + COLLECTION_SECONDS:
                raise UserError(f"{aborted[0]}: its process was killed; run the same command again to continue")
            # DVC starts more than `jobs` workers if it is asked again before the first ones have begun.
            if QUEUED in states and RUNNING not in states and time.monotonic() > started + WORKER_START_SECONDS:
                start_workers(jobs)
                started = time.monotonic()
    except KeyboardInterrupt:
        stop(names)
        raise
    return found


def poll_experiments(names: Collection[str]) -> Iterator[dict[str, Experiment]]:
    """Yield all experiments by name, again and again, and report how many of these have finished."""
    with tqdm(total=len(names), unit="experiment", disable=None) as progress:
        finished = 0
        while True:
            found = read_experiments()
            before, finished = finished, sum(name in found and found[name].state == SUCCESS for name in names)
            if finished > before:
                tqdm.write(f"{finished} of {len(names)} experiments finished", file=sys.stderr)
                progress.update(finished - before)
            yield found
            time.sleep(POLL_SECONDS)


def stop(names: Collection[str]) -> None:
    """Remove those of these experiments from the queue that have not started, and kill those that run.

    A worker that is killed would take the next experiment while it shuts down, and DVC could not read it any more.
    """
    for _ in range(ATTEMPTS):
        queued = [name for name, each in read_experiments().items() if name in names and each.state == QUEUED]
        with contextlib.suppress(UserError):  # one has started meanwhile, so that DVC has removed none
            if queued:
                capture("dvc", "queue", "remove", *queued)
            break
    capture("dvc", "queue", "stop", "--kill")


def start_workers(jobs: int) -> None:
    """Start those workers of the queue that do not run yet. Raises UserError if DVC fails.

    DVC's command leaves processes behind that keep its output open, so that nobody may wait for the end of a pipe.
    """
    command = ["dvc", "queue", "start", "--jobs", str(jobs)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise UserError(f"`{' '.join(command)}`: expected exit status 0, got another; run it to see why")


def read_experiments(attempts: int = ATTEMPTS) -> dict[str, Experiment]:
    """Return the experiments that start from the last commit, by name. Raises UserError if DVC fails."""
    try:
        _, commit = json.loads(capture("dvc", "exp", "show", "--json"))
    except UserError:  # DVC fails if an experiment ends, and its folder is removed, while DVC reads it
        if attempts == 1:
            print("if this lasts, `dvc queue stop --kill && dvc queue remove --all` empties the queue", file=sys.stderr)
            raise
        time.sleep(POLL_SECONDS)
        return read_experiments(attempts - 1)
    return {each["name"]: parse_experiment(each) for each in commit["experiments"] or []}


def parse_experiment(values: dict[str, Any]) -> Experiment:
    """Return the experiment in a part of the output of `dvc exp show --json`."""
    revision = values["revs"][0]["rev"]
    executor = values["executor"]
    if executor is None:  # the queue does not have it (any more)
        return Experiment(revision, SUCCESS, None)
    return Experiment(revision, executor["state"], (executor["local"] or {}).get("pid"))


def is_alive(process: int | None) -> bool:
    """Say whether the process with this ID may be running."""
    try:
        os.kill(process or os.getpid(), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
