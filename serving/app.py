"""Web application: the endpoints of the Open Inference Protocol, of the demo page and of Prometheus's metrics."""

import re
from asyncio import Semaphore, get_running_loop
from collections.abc import Collection, Iterable
from concurrent.futures import Executor
from functools import partial
from importlib.resources import files
from time import perf_counter_ns
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving import forms, inference, protocol, reading
from serving.batching import Batcher
from serving.bodies import Bodies, Upload
from serving.config import config_to_dict
from serving.errors import RequestError
from serving.guard import Guard
from serving.metrics import DIGIT_SECONDS, MetricsMiddleware
from serving.models import Model
from serving.repository import Repository
from serving.responses import error_response, json_response
from serving.statistics import StatisticsCollector

PAGE_FILES = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/icon.svg": "image/svg+xml"}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    repository: Repository,
    executor: Executor,
    bodies: Bodies,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    log_requests: bool = False,
) -> ASGIApp:
    """Return the ASGI application that serves a repository; `executor` runs picture processing.

    `bodies` holds those of its requests. Without `allowed_hosts`, requests may name any host. Pages of
    `allowed_origins` may send requests.
    """
    app = Starlette(routes=ROUTES, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False
    app.state.repository = repository
    app.state.executor = executor
    app.state.picture_slot = Semaphore(1)  # pictures are slow: inference requests wait for one at most
    app.state.bodies = bodies
    app.state.registry = CollectorRegistry()
    body_bytes = Gauge("serving_body_bytes", "Bytes of the request bodies in memory", registry=app.state.registry)
    body_bytes.set_function(lambda: bodies.bytes)
    app.state.registry.register(StatisticsCollector(lambda: [it.statistics for it in repository.find_all()]))
    inner: ASGIApp = MetricsMiddleware(app, repository.entries, log_requests)
    if allowed_origins:
        inner = CORSMiddleware(inner, allow_origins=allowed_origins, allow_methods=["*"], allow_headers=["*"])
    return Guard(inner, allowed_hosts, allowed_origins)


async def infer(request: Request) -> Response:
    """Answer an inference request."""
    batcher = requested_batcher(request)
    statistics = batcher.statistics
    start = perf_counter_ns()
    async with Upload(request.app.state.bodies, request) as body:
        received = perf_counter_ns()
        statistics.receive.add(received - start)
        parsed = protocol.parse_request(body, json_length(request), batcher.model)
        statistics.parse.add(perf_counter_ns() - received)
        outputs = await inference.infer(batcher, parsed)
    computed = perf_counter_ns()
    content, length = protocol.serialize_response(batcher.model, parsed, outputs)
    headers, media_type = {}, "application/json"
    if length is not None:
        headers, media_type = {protocol.JSON_LENGTH_HEADER: str(length)}, "application/octet-stream"
    if encoding := accepted_encoding(request):
        content = protocol.compress(content, encoding)
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    statistics.serialize.add(perf_counter_ns() - computed)
    return Response(content, headers=headers, media_type=media_type)


async def read_digits(request: Request) -> Response:
    """Answer with the lines of text in a picture."""
    state = request.app.state
    async with Upload(state.bodies, request) as body, state.picture_slot:
        if await request.is_disconnected():
            raise ClientDisconnect
        models = [state.repository.find(name).model for name in state.repository.ready()]
        content_type = request.headers.get("content-type", "")
        read = partial(read_upload, body, content_type, models, state.bodies.limits.max_pixels)
        with DIGIT_SECONDS.time():
            answer = await get_running_loop().run_in_executor(state.executor, read)
    return json_response(answer)


def read_upload(body: bytes | bytearray, content_type: str, models: Iterable[Model], max_pixels: int) -> dict[str, Any]:
    """Read the picture in a request's body, which may be a form."""
    return reading.read_picture(forms.read_upload(bytes(body), content_type), models, max_pixels)


async def server_live(request: Request) -> Response:
    """Answer the liveness probe."""
    return json_response({"live": True})


async def server_ready(request: Request) -> Response:
    """Answer the readiness probe."""
    ready = request.app.state.repository.is_ready()
    return json_response({"ready": ready}, 200 if ready else 503)


async def server_metadata(request: Request) -> Response:
    """Answer with the server's name, version and protocol extensions."""
    return json_response(protocol.SERVER_METADATA)


async def model_ready(request: Request) -> Response:
    """Answer a model's readiness probe."""
    batcher, *_ = requested_batchers(request, unknown_status=400)  # as in Triton
    return json_response({"name": batcher.model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """Answer with a model's inputs and outputs."""
    return json_response(protocol.model_metadata([batcher.model for batcher in requested_batchers(request)]))


async def model_config(request: Request) -> Response:
    """Answer with a model's configuration."""
    return json_response(config_to_dict(requested_batcher(request).model.config))


async def model_statistics(request: Request) -> Response:
    """Answer with the statistics of a model's version, of all its versions, or of all models."""
    batchers = requested_batchers(request, unknown_status=400)  # as in Triton
    return json_response({"model_stats": [batcher.statistics.to_dict() for batcher in batchers]})


async def repository_index(request: Request) -> Response:
    """Answer with the state of every model."""
    message = await receive_message(request)
    ready = protocol.get_field(message, "ready", bool, False)
    return json_response([*request.app.state.repository.index(ready)])


async def load_model(request: Request) -> Response:
    """Load a model from the repository."""
    parameters = protocol.get_parameters(await receive_message(request))
    await request.app.state.repository.load(request.path_params["model"], parameters)
    return Response()


async def unload_model(request: Request) -> Response:
    """Stop serving a model."""
    await receive_message(request)
    await request.app.state.repository.unload(request.path_params["model"])
    return Response()


async def shared_memory(request: Request) -> Response:
    """Refuse the extensions for shared memory."""
    raise RequestError("shared memory: expected data in requests; this server has no regions", 501)


async def metrics(request: Request) -> Response:
    """Answer with the metrics in Prometheus's text format."""
    content = generate_latest() + generate_latest(request.app.state.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def page(request: Request) -> Response:
    """Answer with a file of the demo page."""
    path = request.scope["path"]
    content = (files("serving") / "page" / (path[1:] or "index.html")).read_bytes()
    return Response(content, headers=PAGE_HEADERS, media_type=PAGE_FILES[path])


def requested_batcher(request: Request) -> Batcher:
    """Return the queue of the model that the path names. Raises RequestError if the model or version is not served."""
    path = request.path_params
    repository: Repository = request.app.state.repository
    return repository.find(path["model"], path.get("version", ""))


def requested_batchers(request: Request, unknown_status: int = 404) -> list[Batcher]:
    """Return the queues of the versions that the path means.

    Raises RequestError with the status `unknown_status` if one of them is not served.
    """
    path = request.path_params
    repository: Repository = request.app.state.repository
    try:
        return repository.find_all(path.get("model", ""), path.get("version", ""))
    except RequestError as error:
        error.status = unknown_status
        raise


async def receive_message(request: Request) -> Any:
    """Return the JSON in a request's body, {} if the body is empty. Raises RequestError if it is invalid."""
    async with Upload(request.app.state.bodies, request) as body:
        return protocol.parse_json(body, len(body)) if body else {}


def accepted_encoding(request: Request) -> str | None:
    """Return the first content encoding that the client accepts and the server knows, if any."""
    accepted = request.headers.get("accept-encoding")
    if not accepted:
        return None
    names = {part.strip().lower() for part in accepted.split(",")}  # without those that have a weight
    return next((encoding for encoding in protocol.ENCODINGS if encoding in names), None)


def json_length(request: Request) -> int | None:
    """Return the length of the body's JSON if binary data may follow it. Raises RequestError if it is not a number."""
    length = request.headers.get(protocol.JSON_LENGTH_HEADER)
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise RequestError(f"{protocol.JSON_LENGTH_HEADER}: expected a number of bytes, got {length!r}")
    return int(length)


async def request_error(request: Request, error: Exception) -> Response:
    """Answer an invalid request (RequestError)."""
    assert isinstance(error, RequestError)
    return error_response(error.status, str(error))


async def http_exception(request: Request, error: Exception) -> Response:
    """Answer a path or method that does not exist (Starlette's HTTPException)."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    response = error_response(error.status_code, f"{request.method} {path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def internal_error(request: Request, error: Exception) -> Response:
    """Answer after an unexpected exception, which the web server logs."""
    return error_response(500, "internal server error; see the server's log")


async def client_closed_request(request: Request, error: Exception) -> Response:
    """Give the log a status for a client that closed its connection; 499 is nginx's code for it."""
    return Response(status_code=499)


EXCEPTION_HANDLERS = {
    RequestError: request_error,
    HTTPException: http_exception,
    ClientDisconnect: client_closed_request,
    Exception: internal_error,
}
MODELS = "/v2/models"
MODEL, VERSION = MODELS + "/{model}", "/versions/{version}"
REPOSITORY = "/v2/repository"
ROUTES = [  # in the order of matching: the most frequent first
    Route(MODEL + "/infer", infer, methods=["POST"]),
    Route(MODEL + VERSION + "/infer", infer, methods=["POST"]),
    Route("/digits", read_digits, methods=["POST"]),
    Route("/v2/health/live", server_live),
    Route("/v2/health/ready", server_ready),
    *(Route(path, server_metadata) for path in ("/v2", "/v2/")),
    *(Route(path + "/stats", model_statistics) for path in (MODELS, MODEL, MODEL + VERSION)),
    *(Route(path, model_metadata) for path in (MODEL, MODEL + VERSION)),
    *(Route(path + "/ready", model_ready) for path in (MODEL, MODEL + VERSION)),
    *(Route(path + "/config", model_config) for path in (MODEL, MODEL + VERSION)),
    Route(REPOSITORY + "/index", repository_index, methods=["POST"]),
    Route(REPOSITORY + "/models/{model}/load", load_model, methods=["POST"]),
    Route(REPOSITORY + "/models/{model}/unload", unload_model, methods=["POST"]),
    Route("/v2/systemsharedmemory/{path:path}", shared_memory, methods=["GET", "POST"]),
    Route("/v2/cudasharedmemory/{path:path}", shared_memory, methods=["GET", "POST"]),
    Route("/metrics", metrics),
    *(Route(path, page) for path in PAGE_FILES),
]
for route in ROUTES:  # `$` in Starlette's pattern also matches before a final line break, `\Z` does not
    route.path_regex = re.compile(route.path_regex.pattern.replace("$", r"\Z"))
