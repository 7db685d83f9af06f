"""What is seen from outside: Prometheus's metrics, and a line for each request."""

import sys
import time
from collections.abc import Container
from datetime import UTC, datetime

import orjson
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)  # seconds

REQUESTS = Counter("serving_requests", "Requests, by what was answered", ["endpoint", "model", "status"])
IMAGES = Counter("serving_images", "Images that were answered for", ["model"])
STAGES = Histogram(
    "serving_stage_seconds",
    "Time that requests spent in a stage; run includes the wait",
    ["model", "stage"],
    buckets=BUCKETS,
)
DIGIT_SECONDS = Histogram("serving_digit_seconds", "Time in which a picture of a digit was read", buckets=BUCKETS)


class Stages:
    """The stages of one model's requests, timed."""

    def __init__(self, model: str):
        self.images = IMAGES.labels(model)
        self.receive, self.read, self.run, self.write = (
            STAGES.labels(model, stage) for stage in ("receive", "read", "run", "write")
        )

    def observe(self, images: int, *times: float) -> None:
        """Count a request that began, and went on to each next stage, at these times of time.perf_counter."""
        self.images.inc(images)
        for stage, start, end in zip((self.receive, self.read, self.run, self.write), times, times[1:]):
            stage.observe(end - start)


class Observed:
    """An application whose requests are counted and, if wanted, logged as a line of JSON each."""

    def __init__(self, app: ASGIApp, models: Container[str], log: bool):
        self.app = app
        self.models = models
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        status = 0  # for a client that leaves before there is an answer

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            model = scope.get("path_params", {}).get("model")
            REQUESTS.labels(endpoint, model if model in self.models else "", status).inc()
            if self.log:
                log(scope, status, time.perf_counter() - start)


def log(scope: Scope, status: int, seconds: float) -> None:
    """Print what was asked and answered."""
    client, _ = scope["client"] or ("", 0)
    line = {
        "time": datetime.now(UTC),
        "client": client,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
    }
    sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()
