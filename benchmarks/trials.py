"""What the training benchmarks share: a progress report, a process for each trial, the training loop, the accuracy."""

import functools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from tqdm import tqdm

from stages import dataset, evaluate, networks, train
from stages.checkpoint import Checkpoint
from stages.params import Data, Recipe
from stages.train import TrainingData

Result = TypeVar("Result")
Task = tuple[Any, ...]


def run_trials(trial: Callable[..., Result], tasks: list[Task], parallel: int = 1) -> list[Result]:
    """Return trial(*task) for each task, each from a new process, `parallel` of them at a time."""
    return call_with_progress(functools.partial(call_in_process, trial), tasks, parallel)


def call_with_progress(function: Callable[..., Result], tasks: list[Task], parallel: int = 1) -> list[Result]:
    """Return function(*task) for each task, from `parallel` threads; log each result and the time left to stderr."""
    start = time.perf_counter()
    results: list[Result] = []
    with ThreadPoolExecutor(parallel) as threads, tqdm(total=len(tasks), unit="trial", disable=None) as progress:
        for result in threads.map(lambda task: function(*task), tasks):
            results.append(result)
            left = (time.perf_counter() - start) / len(results) * (len(tasks) - len(results))
            counts = f"{len(results)} of {len(tasks)} done, about {tqdm.format_interval(left)} left"
            tqdm.write(f"{result}  ({counts})", file=sys.stderr)
            progress.update()
    return results


def call_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return function(*arguments) from a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def fit_from_scratch(network: nn.Module, data: TrainingData, recipe: Recipe, seed: int) -> Iterator[dict[str, float]]:
    """Run the pipeline's training loop, which writes a checkpoint after each epoch, in a temporary directory."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", fingerprint="")
        yield from train.fit(network, data, recipe, seed, checkpoint)


def evaluate_accuracy(network: nn.Module, data: Data) -> float:
    """Return the network's accuracy on the test set."""
    test = dataset.load_test_set(data)
    logits = networks.predict_logits(network, test.images.to(next(network.parameters()).device))
    return float(evaluate.classification_metrics(logits.cpu(), test.labels)["accuracy"])
