"""Dynamic batching: concatenate the small requests that are pending at the same time, without queue delay."""

import asyncio
import timeit
from bisect import bisect
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from serving.models import Arrays, Model

MAX_BATCH_SIZE = 32  # images concatenated from several requests; larger batches have no higher throughput
INLINE_BATCH_SIZE = 8  # images; for fewer, switching to a thread and back takes longer than a fast model's inference
INLINE_LATENCY_SECONDS = 0.002  # a model that is slower at INLINE_BATCH_SIZE would block the event loop


class PendingRequest(NamedTuple):
    """An inference request that waits for its outputs."""

    inputs: Arrays
    size: int  # images
    outputs: asyncio.Future[Arrays]


class Batcher:
    """Runs one model for all requests. At most one concatenated batch is in a thread at a time."""

    def __init__(self, model: Model, executor: Executor):
        """Prepare a queue; `executor` runs every batch that is too large to run on the event loop."""
        self.model = model
        self.executor = executor
        self.queue: list[PendingRequest] = []
        self.busy = False  # a thread runs a batch from the queue
        self.inline_size = INLINE_BATCH_SIZE if model.batchable and is_fast(model) else 0

    async def infer(self, inputs: Arrays, size: int, only_request: bool) -> Arrays:
        """Return the model's outputs for `size` images; `only_request` if the server has no other request."""
        if only_request and size <= self.inline_size:
            return self.model.run(inputs)
        loop = asyncio.get_running_loop()
        if size >= MAX_BATCH_SIZE or not self.model.batchable:
            return await loop.run_in_executor(self.executor, self.model.run, inputs)
        if not self.queue:
            loop.call_soon(self.run_next_batch)  # after the requests that the event loop has already received
        request = PendingRequest(inputs, size, loop.create_future())
        self.queue.append(request)
        return await request.outputs

    def run_next_batch(self) -> None:
        """Start the next batch from the queue, of at most MAX_BATCH_SIZE images, unless one is running."""
        if self.busy or not self.queue:
            return
        loop = asyncio.get_running_loop()
        sizes = list(accumulate(request.size for request in self.queue))
        count = bisect(sizes, MAX_BATCH_SIZE)
        batch, self.queue = self.queue[:count], self.queue[count:]
        if sizes[count - 1] <= self.inline_size:
            resolve_futures(batch, self.run_batch(batch))
            loop.call_soon(self.run_next_batch)
        else:
            self.busy = True
            run = loop.run_in_executor(self.executor, self.run_batch, batch)
            run.add_done_callback(lambda run: self.finish_batch(batch, run.result()))

    def run_batch(self, batch: Sequence[PendingRequest]) -> list[Arrays | Exception]:
        """Return the outputs, or the error, of each request.

        If the concatenated batch fails, the requests are retried one by one, so that only the invalid ones fail.
        """
        try:
            outputs = self.model.run(concatenate([request.inputs for request in batch]))
            return [*split_outputs(outputs, [request.size for request in batch])]
        except Exception as error:
            return [error] if len(batch) == 1 else [self.run_batch([request])[0] for request in batch]

    def finish_batch(self, batch: Sequence[PendingRequest], results: Sequence[Arrays | Exception]) -> None:
        """Resolve the futures of a batch that ran in a thread, and start the next one."""
        resolve_futures(batch, results)
        self.busy = False
        self.run_next_batch()


def is_fast(model: Model) -> bool:
    """Say whether the model runs INLINE_BATCH_SIZE images within INLINE_LATENCY_SECONDS (min of 3 runs)."""
    inputs = {spec.name: np.zeros((INLINE_BATCH_SIZE, *spec.shape[1:]), spec.dtype) for spec in model.inputs.values()}
    return min(timeit.repeat(lambda: model.run(inputs), number=1, repeat=3)) < INLINE_LATENCY_SECONDS


def concatenate(batches: Sequence[Arrays]) -> Arrays:
    """Concatenate the inputs of several requests along the batch dimension."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def split_outputs(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Split the outputs of a concatenated batch into those of its requests."""
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
