"""Statistics of inference requests, in the form of Triton's statistics extension and as Prometheus's metrics."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

BATCH_BUCKETS = [2**exponent for exponent in range(11)]  # images


@dataclass
class Duration:
    """A number of events and the sum of their durations."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Add events of this duration each."""
        self.count += count
        self.ns += ns * count


@dataclass
class BatchDurations:
    """Durations of all executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)  # concatenation of the requests' inputs
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)  # division into the requests' outputs

    def add(self, durations: tuple[int, int, int], count: int = 1) -> None:
        """Add the durations of one execution, in ns, for `count` requests."""
        for each, ns in zip((self.compute_input, self.compute_infer, self.compute_output), durations):
            each.add(ns, count)


class Statistics:
    """Statistics of one version of a model."""

    def __init__(self, model: str, version: str):
        """Start without requests."""
        self.model, self.version = model, version
        self.last_inference_ms = self.inference_count = self.execution_count = 0
        self.success, self.fail, self.queue, self.compute = Duration(), Duration(), Duration(), BatchDurations()
        self.batches: dict[int, BatchDurations] = {}
        self.receive, self.parse, self.serialize = Duration(), Duration(), Duration()  # outside the queue
        self.lock = threading.Lock()

    def add_execution(self, batch_size: int, queue_ns: Sequence[int], durations: tuple[int, int, int]) -> None:
        """Add a batch that ran, with the time that each of its requests spent in the queue. Called from any thread."""
        with self.lock:
            self.last_inference_ms = time.time_ns() // 1_000_000
            self.inference_count += batch_size
            self.execution_count += 1
            if batch_size not in self.batches:
                self.batches[batch_size] = BatchDurations()
            self.batches[batch_size].add(durations)
            self.compute.add(durations, len(queue_ns))
            self.queue.count += len(queue_ns)
            self.queue.ns += sum(queue_ns)

    def add_request(self, ns: int, succeeded: bool) -> None:
        """Add a request, with the time from its arrival in the queue to its outputs."""
        (self.success if succeeded else self.fail).add(ns)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON."""
        totals = {"success": self.success, "fail": self.fail, "queue": self.queue} | vars(self.compute)
        return {
            "name": self.model,
            "version": self.version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {key: vars(value) for key, value in totals.items()}
            | {"cache_hit": vars(Duration()), "cache_miss": vars(Duration())},
            "response_stats": {},
            "batch_stats": [
                {"batch_size": size} | {key: vars(value) for key, value in vars(durations).items()}
                for size, durations in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


class StatisticsCollector(Collector):
    """Prometheus's metrics that follow from the statistics, computed when they are read."""

    def __init__(self, list_statistics: Callable[[], Iterable[Statistics]]):
        """Collect from the statistics that this function returns."""
        self.list_statistics = list_statistics

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = ["model", "version"]
        images = CounterMetricFamily("serving_images", "Images in batches that ran", labels=labels)
        stages = SummaryMetricFamily(
            "serving_stage_seconds", "Duration of stages of requests", labels=[*labels, "stage"]
        )
        batches = HistogramMetricFamily("serving_batch_size", "Images in a batch", labels=labels)
        for each in self.list_statistics():
            values = [each.model, each.version]
            images.add_metric(values, each.inference_count)
            durations = {"receive": each.receive, "parse": each.parse, "queue": each.queue}
            durations |= {"infer": each.compute.compute_infer, "serialize": each.serialize}
            for stage, duration in durations.items():
                stages.add_metric([*values, stage], duration.count, duration.ns / 1e9)
            counts = {size: batch.compute_infer.count for size, batch in [*each.batches.items()]}
            buckets = [(str(limit), sum(counts[size] for size in counts if size <= limit)) for limit in BATCH_BUCKETS]
            batches.add_metric(values, [*buckets, ("+Inf", sum(counts.values()))], each.inference_count)
        yield from (images, stages, batches)
