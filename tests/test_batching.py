"""Dynamic batching, as the configuration allows it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from serving.batching import Batcher
from serving.errors import RequestError
from serving.models import load_versions, read_bytes
from tests.foreign_models import save_model


def run(
    tmp_path: Path, config: str, requests: list[np.ndarray], operator: str = "Neg", shape=("batch", "n"), **options
):
    """Send requests at the same time; return their results and the sizes of the batches that ran."""
    save_model(tmp_path / "m" / "1" / "model.onnx", operator, "x", [*shape], config=config, **options)
    (model,) = load_versions(tmp_path / "m", read_bytes)

    async def send_all() -> tuple[list, dict[int, int]]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(model, executor)
            calls = [batcher.infer({"x": request}, len(request)) for request in requests]
            results = await asyncio.gather(*calls, return_exceptions=True)
        return results, {size: it.compute_infer.count for size, it in batcher.statistics.batches.items()}

    return asyncio.run(send_all())


def ones(size: int, length: int = 1) -> np.ndarray:
    return np.ones((size, length), np.float32)


@pytest.mark.parametrize(
    ("config", "sizes", "batches"),
    [
        ("max_batch_size: 8", [1] * 10, {1: 10}),
        ("max_batch_size: 8\ndynamic_batching {}", [1] * 10, {8: 1, 2: 1}),
        ("max_batch_size: 8\ndynamic_batching {}", [3, 3, 3, 8, 1], {6: 1, 3: 1, 8: 1, 1: 1}),
        ("max_batch_size: 8\ndynamic_batching { preferred_batch_size: [ 4 ] }", [1] * 10, {4: 2, 2: 1}),
        ("max_batch_size: 8\ndynamic_batching { preferred_batch_size: [ 4 ] }", [8, 3, 3, 1], {8: 1, 3: 1, 4: 1}),
        ("max_batch_size: 8\ndynamic_batching { preferred_batch_size: [ 2, 6 ] }", [1] * 7, {6: 1, 1: 1}),
    ],
)
def test_requests_join_up_to_the_preferred_batch_size_only_with_dynamic_batching(tmp_path, config, sizes, batches):
    results, ran = run(tmp_path, config, [ones(size) for size in sizes])
    assert ran == batches
    assert [len(result["result"]) for result in results] == sizes


def test_requests_wait_for_others_during_the_queue_delay(tmp_path):
    config = "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 1000000 }"
    save_model(tmp_path / "m" / "1" / "model.onnx", "Neg", "x", ["batch", 1], config=config)
    (model,) = load_versions(tmp_path / "m", read_bytes)

    async def send_slowly() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor)
            calls = []
            for size in (3, 3, 2, 1):
                calls.append(asyncio.create_task(batcher.infer({"x": ones(size)}, size)))
                await asyncio.sleep(0.01)
            await asyncio.gather(*calls)
        return [*batcher.statistics.batches]

    assert asyncio.run(send_slowly()) == [8, 1]  # the first is full, the second waits in vain


def test_requests_of_different_shapes_do_not_join(tmp_path):
    results, batches = run(tmp_path, "max_batch_size: 8\ndynamic_batching {}", [ones(1, n) for n in (1, 1, 2, 2, 1)])
    assert [result["result"].shape for result in results] == [(1, 1), (1, 1), (1, 2), (1, 2), (1, 1)]
    assert batches == {2: 2, 1: 1}


def test_only_the_invalid_request_of_a_batch_fails(tmp_path):
    requests = [np.array([[value]]) for value in (3, 3, 9, 3)]
    config = "max_batch_size: 8\ndynamic_batching {}"
    results, _ = run(tmp_path, config, requests, "Gather", ("batch", 1), kind=TensorProto.INT64, table=np.arange(4))
    assert [isinstance(result, RequestError) for result in results] == [False, False, True, False]


def test_a_model_whose_rows_depend_on_each_other_answers_each_request_alone(tmp_path):
    requests = [ones(1) for _ in range(50)]
    results, _ = run(tmp_path, "max_batch_size: 8", requests, "Softmax", ("batch", 1), attributes={"axis": 0})
    assert [result["result"].tolist() for result in results] == [[[1.0]]] * 50


def test_as_many_batches_run_at_a_time_as_there_are_instances(tmp_path):
    config = "max_batch_size: 8\ninstance_group { count: 3 }\ninstance_group { count: 1 }"
    save_model(tmp_path / "m" / "1" / "model.onnx", "Neg", "x", ["batch", 1], config=config)
    (model,) = load_versions(tmp_path / "m", read_bytes)
    barrier = threading.Barrier(4, timeout=30)  # passes only if four batches run at the same time

    async def send_all() -> None:
        with ThreadPoolExecutor(8) as executor:
            batcher = Batcher(model, executor)
            run_model, model.run = model.run, lambda inputs: (barrier.wait(), run_model(inputs))[1]
            batcher.inline_size = 0
            await asyncio.gather(*(batcher.infer({"x": ones(8)}, 8) for _ in range(4)))

    asyncio.run(send_all())


@pytest.mark.parametrize(("shape", "size"), [(("batch", 2), 8), (("batch", "n"), 0)])
def test_only_batches_of_a_known_size_run_on_the_event_loop(tmp_path, shape, size):
    save_model(tmp_path / "m" / "1" / "model.onnx", "Neg", "x", [*shape], config="max_batch_size: 8")
    (model,) = load_versions(tmp_path / "m", read_bytes)
    assert Batcher(model, ThreadPoolExecutor(1)).inline_size == size
