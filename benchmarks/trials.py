"""Trials, each in a process of its own, with progress and the time left, and what they do alike."""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torch import nn
from tqdm import tqdm

from stages import dataset, evaluate, networks, train
from stages.checkpoint import Checkpoint
from stages.dataset import Split
from stages.params import Data, Recipe

Result = TypeVar("Result")


def run(trial: Callable[..., Result], tasks: list[tuple], at_once: int = 1) -> list[Result]:
    """Return trial(*task) for each task; write every result, and the time left, to the standard error."""
    start = time.perf_counter()
    results = []
    with ThreadPoolExecutor(at_once) as threads, tqdm(total=len(tasks), unit="trial", disable=None) as progress:
        for result in threads.map(lambda task: in_process(trial, *task), tasks):
            results.append(result)
            left = (time.perf_counter() - start) / len(results) * (len(tasks) - len(results))
            counts = f"{len(results)} of {len(tasks)} done, about {tqdm.format_interval(left)} left"
            tqdm.write(f"{result}  ({counts})", file=sys.stderr)
            progress.update()
    return results


def in_process(call: Callable[..., Result], *arguments) -> Result:
    """Return call(*arguments) from a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


def fit(
    network: nn.Module, training: Split, validation: Split, recipe: Recipe, seed: int
) -> Iterator[dict[str, float]]:
    """Train as the pipeline does, checkpoints included, but from the start and without leaving any."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", fingerprint="")
        yield from train.fit(network, training, validation, recipe, seed, checkpoint)


def accuracy_on_test_set(network: nn.Sequential, data: Data) -> float:
    test = dataset.load_test(data)
    return evaluate.measure(networks.predict(network, test.images), test.labels)["accuracy"]
