"""Trials, each in a process of its own, with progress and the time left."""

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

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
