"""Small requests that are there at the same time, answered together."""

import asyncio
import timeit
from bisect import bisect
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import accumulate, pairwise

import numpy as np

from serving.models import Arrays, Model

TOGETHER = 32  # the most images that are gathered: larger batches are no faster
AT_ONCE = 8  # up to so many images, the way to a thread and back takes longer than the answer of a quick model
QUICK = 0.002  # seconds for them

Gathered = list[tuple[Arrays, int, asyncio.Future[Arrays]]]  # inputs, images, and what waits for the outputs


class Batcher:
    """Asks a model on behalf of all requests that are there. None waits for others to come."""

    def __init__(self, model: Model, executor: Executor):
        self.model = model
        self.executor = executor
        self.gathered: Gathered = []
        self.busy = False  # a thread is answering what was gathered
        self.at_once = AT_ONCE if model.joins and quick(model) else 0

    async def ask(self, inputs: Arrays, size: int, alone: bool) -> Arrays:
        """Return the model's outputs for a batch of this size. `alone`: there is no other request."""
        if alone and size <= self.at_once:
            return self.model.run(inputs)
        loop = asyncio.get_running_loop()
        if size >= TOGETHER or not self.model.joins:
            return await loop.run_in_executor(self.executor, self.model.run, inputs)
        if not self.gathered:
            loop.call_soon(self.start)  # behind the requests that have arrived meanwhile
        answer = loop.create_future()
        self.gathered.append((inputs, size, answer))
        return await answer

    def start(self) -> None:
        """Have what is gathered answered, as much as one batch holds, unless that is being done."""
        if self.busy or not self.gathered:
            return
        loop = asyncio.get_running_loop()
        sizes = list(accumulate(size for _, size, _ in self.gathered))
        count = bisect(sizes, TOGETHER)
        batch, self.gathered = self.gathered[:count], self.gathered[count:]
        if sizes[count - 1] <= self.at_once:
            settle(batch, self.answer(batch))
            loop.call_soon(self.start)
        else:
            self.busy = True
            run = loop.run_in_executor(self.executor, self.answer, batch)
            run.add_done_callback(lambda run: self.finish(batch, run.result()))

    def answer(self, batch: Gathered) -> list[Arrays | Exception]:
        """Ask the model once for all of them."""
        inputs, sizes, _ = zip(*batch)
        try:
            return split(self.model.run(join(inputs)), sizes)
        except Exception as error:  # whoever waits has to know, and only who is to blame
            return [error] if len(batch) == 1 else [self.answer([one])[0] for one in batch]

    def finish(self, batch: Gathered, outputs: list[Arrays | Exception]) -> None:
        settle(batch, outputs)
        self.busy = False
        self.start()


def quick(model: Model) -> bool:
    """Say whether the model answers a few images sooner than another request would notice."""
    inputs = {it.name: np.zeros((AT_ONCE, *it.shape[1:]), it.dtype) for it in model.inputs.values()}
    return min(timeit.repeat(lambda: model.run(inputs), number=1, repeat=3)) < QUICK


def join(batches: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def split(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Return the outputs for each of the batches that were joined."""
    ends = pairwise(accumulate(sizes, initial=0))
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in ends]


def settle(batch: Gathered, outputs: list[Arrays | Exception]) -> None:
    """Give each of those who wait its outputs, but for those who are gone."""
    for (_, _, answer), output in zip(batch, outputs):
        if answer.done():
            continue
        if isinstance(output, Exception):
            answer.set_exception(output)
        else:
            answer.set_result(output)
