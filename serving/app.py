"""Web application: the endpoints of the Open Inference Protocol, of the demo page and of Prometheus's metrics."""

import re
from asyncio import Semaphore, get_running_loop
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from time import perf_counter
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving import __version__, forms, protocol, reading
from serving.batching import Batcher
from serving.errors import RequestError
from serving.limits import MAX_CONCURRENT_BODIES, MAX_ERROR_CHARACTERS, Limits
from serving.metrics import DIGIT_SECONDS, InferenceMetrics, MetricsMiddleware
from serving.models import Model

SERVER_NAME = "mnist-pipeline"
PAGE_FILES = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/icon.svg": "image/svg+xml"}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(models: dict[str, Model], executor: Executor, limits: Limits, log_requests: bool) -> ASGIApp:
    """Return the ASGI application that serves these models; `executor` runs inference and picture processing."""
    app = Starlette(routes=ROUTES, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False
    app.state.models = models
    app.state.batchers = {name: Batcher(model, executor) for name, model in models.items()}
    app.state.metrics = {name: InferenceMetrics(name) for name in models}
    app.state.executor = executor
    app.state.picture_slot = Semaphore(1)  # pictures are slow: inference requests wait for one at most
    app.state.limits = limits
    app.state.body_bytes = 0  # bodies of all unfinished requests
    return MetricsMiddleware(app, models, log_requests)


async def infer(request: Request) -> Response:
    """Answer an inference request."""
    model = requested_model(request)
    state = request.app.state
    times = [perf_counter()]  # at the start and after each stage
    async with receive_body(request) as body:
        times.append(perf_counter())
        parsed = protocol.parse_request(body, json_length(request), model, state.limits.max_images)
        times.append(perf_counter())
        only_request = len(request.scope["state"]["tasks"]) == 1
        outputs = await state.batchers[model.name].infer(parsed.inputs, parsed.batch_size, only_request)
    times.append(perf_counter())
    content, length = protocol.serialize_response(model, parsed, outputs)
    times.append(perf_counter())
    state.metrics[model.name].observe(parsed.batch_size, times)
    if length is None:
        return Response(content, media_type="application/json")
    headers = {protocol.JSON_LENGTH_HEADER: str(length)}
    return Response(content, headers=headers, media_type="application/octet-stream")


async def read_digits(request: Request) -> Response:
    """Answer with the lines of text in a picture."""
    state = request.app.state
    async with receive_body(request) as body, state.picture_slot:
        if await request.is_disconnected():
            raise ClientDisconnect
        content_type = request.headers.get("content-type", "")
        read = partial(read_upload, body, content_type, state.models.values(), state.limits.max_pixels)
        with DIGIT_SECONDS.time():
            answer = await get_running_loop().run_in_executor(state.executor, read)
    return json_response(answer)


def read_upload(body: bytes, content_type: str, models: Iterable[Model], max_pixels: int) -> dict[str, Any]:
    """Read the picture in a request's body, which may be a form."""
    return reading.read_picture(forms.read_upload(body, content_type), models, max_pixels)


async def server_live(request: Request) -> Response:
    """Answer the liveness probe."""
    return json_response({"live": True})


async def server_ready(request: Request) -> Response:
    """Answer the readiness probe; the models are loaded before the server listens."""
    return json_response({"ready": True})


async def server_metadata(request: Request) -> Response:
    """Answer with the server's name, version and protocol extensions."""
    return json_response({"name": SERVER_NAME, "version": __version__, "extensions": ["binary_tensor_data"]})


async def model_ready(request: Request) -> Response:
    """Answer a model's readiness probe."""
    return json_response({"name": requested_model(request).name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """Answer with a model's inputs and outputs."""
    return json_response(protocol.model_metadata(requested_model(request)))


async def metrics(request: Request) -> Response:
    """Answer with the metrics in Prometheus's text format."""
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def page(request: Request) -> Response:
    """Answer with a file of the demo page."""
    path = request.scope["path"]
    content = (files("serving") / "page" / (path[1:] or "index.html")).read_bytes()
    return Response(content, headers=PAGE_HEADERS, media_type=PAGE_FILES[path])


def requested_model(request: Request) -> Model:
    """Return the model that the path names. Raises RequestError if the model or its version does not exist."""
    models: dict[str, Model] = request.app.state.models
    name = request.path_params["model"]
    if name not in models:
        raise RequestError(f"model: expected one of {', '.join(models)}, got {name!r}", 404)
    model = models[name]
    version = request.path_params.get("version", model.version)
    if version != model.version:
        raise RequestError(f"version of {name}: expected {model.version}, got {version!r}", 404)
    return model


@asynccontextmanager
async def receive_body(request: Request) -> AsyncIterator[bytes]:
    """Yield the request's body, and count its bytes against the server's memory limit meanwhile.

    Raises RequestError if it is compressed or exceeds a limit.
    """
    state, headers = request.app.state, request.headers
    max_bytes = state.limits.max_body_bytes
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RequestError(f"Content-Encoding: expected identity, got {encoding!r}", 415)
    too_large = RequestError(f"body: expected at most {max_bytes} bytes, got more", 413)
    if int(headers.get("content-length", 0)) > max_bytes:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            state.body_bytes += len(chunk)
            if size > max_bytes:
                raise too_large
            if state.body_bytes > max_bytes * MAX_CONCURRENT_BODIES:
                total = max_bytes * MAX_CONCURRENT_BODIES
                raise RequestError(f"bodies in memory: expected at most {total} bytes, got more; try again later", 503)
        yield b"".join(chunks)
    finally:
        state.body_bytes -= size


def json_length(request: Request) -> int | None:
    """Return the length of the body's JSON if binary data may follow it. Raises RequestError if it is not a number."""
    length = request.headers.get(protocol.JSON_LENGTH_HEADER)
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise RequestError(f"{protocol.JSON_LENGTH_HEADER}: expected a number of bytes, got {length!r}")
    return int(length)


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response with this JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


async def request_error(request: Request, error: Exception) -> Response:
    """Answer an invalid request (RequestError)."""
    assert isinstance(error, RequestError)
    return json_response({"error": str(error)[:MAX_ERROR_CHARACTERS]}, error.status)


async def http_exception(request: Request, error: Exception) -> Response:
    """Answer a path or method that does not exist (Starlette's HTTPException)."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    response = json_response({"error": f"{request.method} {path}: {error.detail}"}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def internal_error(request: Request, error: Exception) -> Response:
    """Answer after an unexpected exception, which Uvicorn logs."""
    return json_response({"error": "internal server error; see the server's log"}, 500)


async def client_closed_request(request: Request, error: Exception) -> Response:
    """Give the log a status for a client that closed its connection; 499 is nginx's code for it."""
    return Response(status_code=499)


EXCEPTION_HANDLERS = {
    RequestError: request_error,
    HTTPException: http_exception,
    ClientDisconnect: client_closed_request,
    Exception: internal_error,
}
MODEL, VERSION = "/v2/models/{model}", "/versions/{version}"
ROUTES = [  # in the order of matching: the most frequent first
    Route(MODEL + "/infer", infer, methods=["POST"]),
    Route(MODEL + VERSION + "/infer", infer, methods=["POST"]),
    Route("/digits", read_digits, methods=["POST"]),
    Route("/v2/health/live", server_live),
    Route("/v2/health/ready", server_ready),
    *(Route(path, server_metadata) for path in ("/v2", "/v2/")),
    *(Route(path, model_metadata) for path in (MODEL, MODEL + VERSION)),
    *(Route(path + "/ready", model_ready) for path in (MODEL, MODEL + VERSION)),
    Route("/metrics", metrics),
    *(Route(path, page) for path in PAGE_FILES),
]
for route in ROUTES:  # `$` in Starlette's pattern also matches before a final line break, `\Z` does not
    route.path_regex = re.compile(route.path_regex.pattern.replace("$", r"\Z"))
