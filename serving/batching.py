"""Dynamic batching: run the requests that are pending at the same time as one batch, as the configuration allows."""

import asyncio
import math
import time
import timeit
from bisect import bisect
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import accumulate, pairwise, takewhile
from typing import NamedTuple

import numpy as np

from serving.errors import RequestError
from serving.models import Model
from serving.statistics import Statistics
from serving.tensors import Arrays

INLINE_BATCH_SIZE = 8  # images; for fewer, switching to a thread and back takes longer than a fast model's inference
INLINE_LATENCY_SECONDS = 0.002  # a model that is slower at INLINE_BATCH_SIZE would block the event loop


class PendingRequest(NamedTuple):
    """An inference request that waits for its outputs."""

    inputs: Arrays
    size: int  # images
    shape: tuple[tuple[int, ...], ...]  # of the inputs without the batch dimension: others cannot join
    outputs: asyncio.Future[Arrays]
    arrival: int  # time.perf_counter_ns()


class Batcher:
    """Queue of the requests to one version of a model, which runs as many batches at a time as it has instances."""

    def __init__(self, model: Model, executor: Executor):
        """Prepare a queue; `executor` runs every batch that is too large to run on the event loop."""
        self.model = model
        self.statistics = Statistics(model.name, model.version)
        self.executor = executor
        self.queue: list[PendingRequest] = []
        self.instances = sum(group.count for group in model.config.instance_group)
        self.running = 0  # batches in threads
        self.scheduled = False  # run_batches will be called
        self.batching = model.batched and model.config.HasField("dynamic_batching")
        settings = model.config.dynamic_batching
        self.preferred_sizes = set(settings.preferred_batch_size)
        self.max_size = max(self.preferred_sizes, default=1)
        self.delay_ns = 1000 * settings.max_queue_delay_microseconds
        self.variable_shapes = any(-1 in spec.shape[1:] for spec in model.inputs.values())
        self.timer: asyncio.TimerHandle | None = None
        self.inline_size = 0 if self.variable_shapes else inline_size(model)

    async def infer(self, inputs: Arrays, size: int) -> Arrays:
        """Return the model's outputs for a request of `size` images. Raises RequestError if the model cannot."""
        loop = asyncio.get_running_loop()
        if not self.scheduled:
            self.scheduled = True
            loop.call_soon(self.run_batches)  # after the requests that the event loop has already received
        shape = tuple(array.shape[1:] for array in inputs.values()) if self.variable_shapes else ()
        start = time.perf_counter_ns()
        request = PendingRequest(inputs, size, shape, loop.create_future(), start)
        self.queue.append(request)
        succeeded = False
        try:
            outputs = await request.outputs
            succeeded = True
        finally:
            self.statistics.add_request(time.perf_counter_ns() - start, succeeded)
        return outputs

    def run_batches(self) -> None:
        """Start batches from the queue while there are free instances."""
        self.scheduled = False
        while self.running < self.instances and (batch := self.take_batch()):
            if sum(request.size for request in batch) <= self.inline_size and not self.running:
                resolve_futures(batch, self.run_batch(batch))
            else:
                self.running += 1
                run = asyncio.get_running_loop().run_in_executor(self.executor, self.run_batch, batch)
                run.add_done_callback(partial(self.finish_batch, batch))

    def take_batch(self) -> list[PendingRequest]:
        """Remove the next batch from the queue: none if the queue is empty, or if more requests may still join.

        Requests join in their order, up to the largest preferred batch size and while their shapes are equal. A batch
        of a preferred size, or one that cannot grow, starts at once; others after their first request's queue delay.
        """
        self.queue = [request for request in self.queue if not request.outputs.done()]  # without those cancelled
        if not self.queue:
            return []
        if len(self.queue) == 1 and not self.delay_ns:
            return [self.queue.pop()]
        first = self.queue[0]
        candidates = [first]
        if self.batching:
            candidates = [*takewhile(lambda request: request.shape == first.shape, self.queue)]
        sizes = [*accumulate(request.size for request in candidates)]
        count = max(bisect(sizes, self.max_size), 1)
        preferred = [index for index, size in enumerate(sizes[:count], start=1) if size in self.preferred_sizes]
        if preferred:
            count = preferred[-1]
        elif self.batching and count == len(self.queue) and sizes[-1] < self.max_size:
            remaining_ns = first.arrival + self.delay_ns - time.perf_counter_ns()
            if self.delay_ns and remaining_ns > 0:
                self.start_timer(remaining_ns / 1e9)
                return []
        batch, self.queue = self.queue[:count], self.queue[count:]
        return batch

    def start_timer(self, seconds: float) -> None:
        """Look at the queue again after the queue delay."""
        if self.timer:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.run_batches)

    def run_batch(self, batch: Sequence[PendingRequest]) -> list[Arrays | Exception]:
        """Return the outputs, or the error, of each request.

        If the concatenated batch fails, the requests are retried one by one, so that only the invalid ones fail.
        """
        start = time.perf_counter_ns()
        sizes = [request.size for request in batch]
        try:
            inputs = concatenate([request.inputs for request in batch])
            ready = time.perf_counter_ns()
            outputs = self.model.run(inputs)
            ran = time.perf_counter_ns()
            results: list[Arrays | Exception] = [*split_outputs(outputs, sizes)]
        except Exception as error:
            return [error] if len(batch) == 1 else [self.run_batch([request])[0] for request in batch]
        durations = (ready - start, ran - ready, time.perf_counter_ns() - ran)
        self.statistics.add_execution(sum(sizes), [start - request.arrival for request in batch], durations)
        return results

    def finish_batch(self, batch: Sequence[PendingRequest], run: asyncio.Future[list[Arrays | Exception]]) -> None:
        """Resolve the futures of a batch that ran in a thread, and start the next one."""
        resolve_futures(batch, run.result())
        self.running -= 1
        self.run_batches()


def inline_size(model: Model) -> int:
    """Return the largest batch that runs on the event loop, 0 if that takes longer than INLINE_LATENCY_SECONDS."""
    size = min(INLINE_BATCH_SIZE, model.config.max_batch_size)
    shapes = {name: np.abs((size, *spec.shape[1:])) for name, spec in model.inputs.items()}
    inputs = {name: np.ones(shape, model.inputs[name].dtype) for name, shape in shapes.items()}
    try:
        fastest = min(timeit.repeat(lambda: model.run(inputs), number=1, repeat=3)) if size else math.inf
    except RequestError:  # these values mean nothing to the model
        return 0
    return size if fastest < INLINE_LATENCY_SECONDS else 0


def concatenate(batches: Sequence[Arrays]) -> Arrays:
    """Concatenate the inputs of several requests along the batch dimension."""
    if len(batches) == 1:
        return batches[0]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def split_outputs(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Split the outputs of a concatenated batch into those of its requests."""
    if len(sizes) == 1:
        return [outputs]
    ends = pairwise(accumulate(sizes, initial=0))
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in ends]


def resolve_futures(batch: Sequence[PendingRequest], results: Sequence[Arrays | Exception]) -> None:
    """Set each request's outputs or error, except where the client has closed the connection meanwhile."""
    for request, result in zip(batch, results):
        if request.outputs.done():  # cancelled
            continue
        if isinstance(result, Exception):
            request.outputs.set_exception(result)
        else:
            request.outputs.set_result(result)
