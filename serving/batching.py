"""Small requests that are there at the same time, answered together."""

import asyncio
import bisect
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import accumulate, pairwise

import numpy as np

from serving.models import Arrays, Model

TOGETHER = 32  # the most images that are gathered: larger batches are no faster
AT_ONCE = 8  # up to so many images, a thread of their own takes longer than the answer

Gathered = list[tuple[Arrays, asyncio.Future[Arrays]]]


class Batcher:
    """Asks a model on behalf of all requests that are there. None waits for others to come."""

    def __init__(self, model: Model, executor: Executor):
        self.model = model
        self.executor = executor
        self.gathered: Gathered = []
        self.size = 0  # of what is gathered, in images
        self.busy = False

    async def ask(self, inputs: Arrays, size: int, alone: bool) -> Arrays:
        """Return the model's outputs for a batch of this size. `alone`: there is no other request."""
        if alone and size <= AT_ONCE:
            return self.model.run(inputs)
        loop = asyncio.get_running_loop()
        if size >= TOGETHER:
            return await loop.run_in_executor(self.executor, self.model.run, inputs)
        if not self.gathered:
            loop.call_soon(self.start)  # behind the requests that have arrived meanwhile
        answer = loop.create_future()
        self.gathered.append((inputs, size, answer))
        return await answer

    def start(self) -> None:
        """Have what is gathered answered."""
        loop = asyncio.get_running_loop()
        if self.busy or not self.gathered:
            return
        sizes = list(accumulate(size for _, size, _ in self.gathered))
        count = bisect.bisect(sizes, TOGETHER)
        batch, self.gathered = self.gathered[:count], self.gathered[count:]
        if sizes[count - 1] > AT_ONCE:
            self.busy = True
            self.executor.submit(self.answer, batch, loop.call_soon_threadsafe)
        else:
            self.answer(batch, loop.call_soon)

    def answer(self, gathered: Gathered, call_soon: Callable) -> None:
        """Ask the model once for all of them."""
        inputs, _, answers = zip(*gathered)
        try:
            outputs = split(self.model.run(join(inputs)), inputs)
        except Exception as error:  # of the runtime: whoever waits has to know
            outputs = [error] * len(answers)
        call_soon(self.settle, answers, outputs)

    def settle(self, *a):
        settle(*a)
        self.busy = False
        self.start()


def join(batches: list[Arrays]) -> Arrays:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def split(outputs: Arrays, batches: list[Arrays]) -> list[Arrays]:
    """Return each batch's part of the outputs."""
    lengths = (len(next(iter(batch.values()))) for batch in batches)
    ends = pairwise(accumulate(lengths, initial=0))
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in ends]


def settle(answers: list[asyncio.Future[Arrays]], outputs: list[Arrays | Exception]) -> None:
    for answer, output in zip(answers, outputs):
        if answer.done():
            continue  # who asked is gone
        if isinstance(output, Exception):
            answer.set_exception(output)
        else:
            answer.set_result(output)
