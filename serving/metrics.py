"""Prometheus metrics and the request log."""

import contextlib
import sys
import time
from collections.abc import Container
from datetime import UTC, datetime

import orjson
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)  # seconds

REQUESTS = Counter("serving_requests", "Requests by endpoint, model and status", ["endpoint", "model", "status"])
DIGIT_SECONDS = Histogram("serving_digit_seconds", "Time to decode a picture and read its digits", buckets=BUCKETS)
READY = Gauge("serving_model_ready", "1 for every version of a model that is served", ["model", "version"])
LOAD_FAILURES = Counter("serving_model_load_failures", "Failed attempts to load a model", ["model"])


class MetricsMiddleware:
    """ASGI middleware that counts requests and optionally logs each as one line of JSON."""

    def __init__(self, app: ASGIApp, models: Container[str], log_requests: bool):
        """Wrap an application that serves these models."""
        self.app = app
        self.models = models
        self.log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and record the status of its response."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        status = 0  # stays 0 if the request ends before its response starts

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            model = scope.get("path_params", {}).get("model")
            count_request(endpoint, model, status, self.models)
            if self.log_requests:
                client, _ = scope["client"] or ("", 0)
                log_request(client, scope["method"], scope["path"], status, time.perf_counter() - start)


def count_request(endpoint: str, model: str | None, status: int | str, models: Container[str]) -> None:
    """Count a request. Only names in `models` become label values, because clients may send any name."""
    REQUESTS.labels(endpoint, model if model in models else "", status).inc()


def log_request(client: str, method: str, path: str, status: int | str, seconds: float) -> None:
    """Print time, client, method, path, status and duration of a request as one line of JSON."""
    line = {
        "time": datetime.now(UTC),
        "client": client,
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 6),
    }
    with contextlib.suppress(OSError):  # such as a pipe whose reader has ended
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()
