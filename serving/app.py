"""The web application: what is answered under which path."""

import re
from asyncio import Semaphore, get_running_loop
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
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

from serving import digits, protocol
from serving.batching import Batcher
from serving.errors import RequestError
from serving.metrics import DIGIT_SECONDS, Observed, Stages
from serving.models import Model

NAME = "mnist-pipeline"
RELEASE = version(NAME)
PAGE = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/icon.svg": "image/svg+xml"}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for."""

    body: int = 8 * 1024 * 1024  # bytes
    batch: int = 1024  # images, as in config.pbtxt
    pixels: int = 16_000_000  # of a picture
    bodies: int = 32  # of the largest size, that all requests together may hold


def create(models: dict[str, Model], executor: Executor, limits: Limits, log: bool) -> ASGIApp:
    """Return the application for these models; `executor` runs large batches, `log` prints a line for each request."""
    app = Starlette(routes=ROUTES, exception_handlers=ERRORS)
    app.router.redirect_slashes = False
    app.state.models = models
    app.state.batchers = {name: Batcher(model, executor) for name, model in models.items()}
    app.state.stages = {name: Stages(name) for name in models}
    app.state.executor = executor
    app.state.pictures = Semaphore(1)  # no batch waits for more than one
    app.state.limits = limits
    app.state.held = 0  # bytes of bodies
    return Observed(app, models, log)


async def infer(request: Request) -> Response:
    model = find(request)
    state = request.app.state
    start = perf_counter()
    async with body(request) as content:
        received = perf_counter()
        asked = protocol.read(content, json_length(request), model, state.limits.batch)
        read = perf_counter()
        alone = len(request.scope["state"]["tasks"]) == 1
        outputs = await state.batchers[model.name].ask(asked.inputs, asked.batch, alone)
    answered = perf_counter()
    answer, length = protocol.write(model, asked, outputs)
    state.stages[model.name].observe(asked.batch, start, received, read, answered, perf_counter())
    if length is None:
        return Response(answer, media_type="application/json")
    return Response(answer, headers={protocol.JSON_LENGTH: str(length)}, media_type="application/octet-stream")


async def read_digit(request: Request) -> Response:
    """Answer with what each model sees in a picture, and with the image that they were shown."""
    state = request.app.state
    async with body(request) as content, state.pictures:
        if await request.is_disconnected():
            raise ClientDisconnect
        read = partial(digits.read, content, state.models.values(), state.limits.pixels)
        with DIGIT_SECONDS.time():
            image, answers = await get_running_loop().run_in_executor(state.executor, read)
    return json({"image": image.tolist(), "models": answers})


async def live(request: Request) -> Response:
    return json({"live": True})


async def ready(request: Request) -> Response:
    return json({"ready": True})  # the models are loaded before the server listens


async def server(request: Request) -> Response:
    return json({"name": NAME, "version": RELEASE, "extensions": ["binary_tensor_data"]})


async def model_ready(request: Request) -> Response:
    return json({"name": find(request).name, "ready": True})


async def model(request: Request) -> Response:
    return json(protocol.metadata(find(request)))


async def metrics(request: Request) -> Response:
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def page(request: Request) -> Response:
    path = request.scope["path"]
    content = (files("serving") / "page" / (path[1:] or "index.html")).read_bytes()
    return Response(content, headers=PAGE_HEADERS, media_type=PAGE[path])


def find(request: Request) -> Model:
    """Return the model that the path names. Raises RequestError if there is none."""
    models, parameters = request.app.state.models, request.path_params
    model = models.get(parameters["model"])
    if model is None:
        raise RequestError(f"there is no model of this name; allowed: {', '.join(models)}", 404)
    if parameters.get("version", model.version) != model.version:
        raise RequestError(f"{model.name} has no such version; allowed: {model.version}", 404)
    return model


@asynccontextmanager
async def body(request: Request) -> AsyncIterator[bytes]:
    """Give all that is sent. Raises RequestError if it is too much, or compressed, or there is too much from others."""
    state, headers = request.app.state, request.headers
    limit = state.limits.body
    if headers.get("content-encoding", "identity") != "identity":
        raise RequestError("the body is compressed; allowed: plain", 415)
    too_large = RequestError(f"the body is too large; allowed: {limit} bytes", 413)
    if int(headers.get("content-length", 0)) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            state.held += len(chunk)
            if size > limit:
                raise too_large
            if state.held > limit * state.limits.bodies:
                raise RequestError("the server holds too many requests at once; try again", 503)
        yield b"".join(chunks)
    finally:
        state.held -= size


def json_length(request: Request) -> int | None:
    """Return how long the body's JSON is, if bytes may follow it. Raises RequestError if that is no number."""
    length = request.headers.get(protocol.JSON_LENGTH)
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise RequestError(f"{protocol.JSON_LENGTH} is {length!r}; allowed: a number of bytes")
    return int(length)


def json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def refuse(request: Request, error: RequestError) -> Response:
    return json({"error": str(error)[:500]}, error.status)  # it may quote the request


async def refuse_path(request: Request, error: HTTPException) -> Response:
    response = json({"error": f"{request.method} {request.scope['path'][:200]}: {error.detail}"}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def fail(request: Request, error: Exception) -> Response:
    return json({"error": "the server failed; its log says why"}, 500)


async def forget(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # for no one but the log


ERRORS = {RequestError: refuse, HTTPException: refuse_path, ClientDisconnect: forget, Exception: fail}
MODEL, VERSION = "/v2/models/{model}", "/versions/{version}"
ROUTES = [  # in the order in which they are tried
    Route(MODEL + "/infer", infer, methods=["POST"]),
    Route(MODEL + VERSION + "/infer", infer, methods=["POST"]),
    Route("/digits", read_digit, methods=["POST"]),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    *(Route(path, server) for path in ("/v2", "/v2/")),
    *(Route(path, model) for path in (MODEL, MODEL + VERSION)),
    *(Route(path + "/ready", model_ready) for path in (MODEL, MODEL + VERSION)),
    Route("/metrics", metrics),
    *(Route(path, page) for path in PAGE),
]
for route in ROUTES:  # whose `$` would take a path that ends with a line break, too
    route.path_regex = re.compile(route.path_regex.pattern.replace("$", r"\Z"))
