"""gRPC calls: received within limits on time and memory, and recorded."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import EOF, ServicerContext

from serving.bodies import Bodies
from serving.errors import RequestError
from serving.limits import MAX_CONCURRENT_BODIES, MAX_ERROR_CHARACTERS, MIN_MESSAGE_SECONDS
from serving.metrics import count_request, log_request

STATUS_CODES = {  # of an error with this HTTP status
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    499: StatusCode.CANCELLED,  # as in nginx, of a client that has gone
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
}


class Recorder:
    """Counts calls, and optionally logs each as one line of JSON."""

    def __init__(self, models: Container[str], log_requests: bool):
        """Record the calls to a server that serves these models."""
        self.models = models
        self.log_requests = log_requests

    def record(self, method: str, request: Any, context: ServicerContext, code: StatusCode, start: float) -> None:
        """Record the call of a method, /SERVICE/NAME, since the time `start` of perf_counter()."""
        model = getattr(request, "model_name", "") or getattr(request, "name", "")
        count_request(method.rpartition("/")[2], model, code.name, self.models)
        if self.log_requests:
            log_request(context.peer(), "POST", method, code.name, perf_counter() - start)


class CallLimits(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # has no type hints
    """Receives each request of a call within limits.

    gRPC holds a message in memory while it arrives, without saying how much of it has. So the number of calls that wait
    for their clients is limited; if others have to wait for such a slot, the call that has waited longest is given up.
    """

    def __init__(self, bodies: Bodies, recorder: Recorder):
        """Share the memory limit with the bodies of HTTP requests."""
        self.bodies = bodies
        self.recorder = recorder
        self.seconds = bodies.limits.timeout_seconds
        self.handlers: dict[str, grpc.RpcMethodHandler] = {}  # by method
        self.slots = asyncio.Semaphore(MAX_CONCURRENT_BODIES)
        self.waiting = 0  # calls without a slot
        self.slots_held: dict[asyncio.Timeout, float] = {}  # with the earliest end, the oldest first
        self.idle: set[asyncio.Timeout] = set()  # of streams that wait for something other than their response
        self.stopping = False

    def stop(self) -> None:
        """End every stream: at once, or after the response that is under way."""
        self.stopping = True
        while self.idle:
            self.idle.pop().reschedule(0)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Return the handler of a method, with the limits."""
        method = details.method
        if method not in self.handlers:
            handler = await continuation(details)
            if handler is None:
                return None
            self.handlers[method] = self.limited(method, handler)
        return self.handlers[method]

    def limited(self, method: str, handler: Any) -> grpc.RpcMethodHandler:
        """Return a handler with the limits: one of a stream, as only such a one receives its requests itself."""
        converters = partial(deserialize, handler.request_deserializer), handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(partial(self.stream, handler.stream_stream), *converters)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(partial(self.watch, handler.unary_stream), *converters)
        return grpc.stream_unary_rpc_method_handler(partial(self.call, method, handler.unary_unary), *converters)

    async def call(self, method: str, function: Any, requests: Any, context: ServicerContext) -> Any:
        """Answer a call of one request and one response."""
        start, request, code = perf_counter(), None, StatusCode.UNKNOWN
        try:
            request = await self.receive_only(context)
            with self.bodies.held(request.ByteSize()):
                response = await function(request, context)
            code = StatusCode.OK
        except RequestError as error:
            code = status_code(error)
            await abort(context, error)
        except asyncio.CancelledError:
            code = StatusCode.CANCELLED
            raise
        except NotImplementedError:
            code = StatusCode.UNIMPLEMENTED
            raise
        finally:
            self.recorder.record(method, request, context, code, start)
        return response

    async def stream(self, function: Any, requests: Any, context: ServicerContext) -> AsyncIterator[Any]:
        """Answer the requests of a stream."""
        try:
            async for response in function(self.receive_all(context), context):
                yield response
        except RequestError as error:
            await abort(context, error)

    async def watch(self, function: Any, requests: Any, context: ServicerContext) -> None:
        """Answer a call of one request, to which responses are sent until the server stops."""
        try:
            request = await self.receive_only(context)
            async with self.until_stop(), self.slot(None):
                await function(request, context)
        except RequestError as error:
            await abort(context, error)

    async def receive_all(self, context: ServicerContext) -> AsyncIterator[Any]:
        """Yield the requests of a stream. Raises RequestError if the server stops, or needs the slot for another."""
        while True:
            async with self.until_stop():
                request = await self.receive(context, None)
            if request is EOF:
                return
            with self.bodies.held(request.ByteSize()):
                yield request

    async def receive_only(self, context: ServicerContext) -> Any:
        """Return the only request of a call. Raises RequestError if it is invalid or not complete in time."""
        request = await self.receive(context, self.seconds)
        if request is EOF:
            if context.cancelled():
                raise asyncio.CancelledError
            raise RequestError("request: expected a message, got none", 499)
        return request

    async def receive(self, context: ServicerContext, seconds: float | None) -> Any:
        """Return a call's next request, or EOF. Raises RequestError if it is invalid or not complete in time."""
        async with self.slot(seconds):
            request = await context.read()
        if isinstance(request, RequestError):
            raise request
        return request

    @asynccontextmanager
    async def slot(self, seconds: float | None) -> AsyncIterator[None]:
        """Limit how long, and how many calls wait for their clients inside the `with` statement.

        Raises RequestError inside the statement if it takes too long, also if others wait for a slot.
        """
        oldest = next((each for each in self.slots_held if not each.expired()), None)
        if oldest and self.slots.locked():
            oldest.reschedule(self.slots_held.pop(oldest))
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(MIN_MESSAGE_SECONDS if self.waiting else seconds) as deadline:
                self.slots_held[deadline] = start + MIN_MESSAGE_SECONDS
                yield
        except TimeoutError:
            if seconds is not None and loop.time() - start >= seconds:
                raise RequestError(self.bodies.limits.timeout_error, 408) from None
            expected = f"at most {MAX_CONCURRENT_BODIES} that wait for their clients"
            raise RequestError(f"calls: expected {expected}, got more; try again later", 503) from None
        finally:
            self.slots_held.pop(deadline, None)
            self.slots.release()

    @asynccontextmanager
    async def until_stop(self) -> AsyncIterator[None]:
        """Raise RequestError inside the `with` statement when the server stops."""
        try:
            async with asyncio.timeout(0 if self.stopping else None) as deadline:
                self.idle.add(deadline)
                yield
        except TimeoutError:
            raise RequestError("stream: expected a running server, got one that shuts down", 503) from None
        finally:
            self.idle.discard(deadline)


def deserialize(parse: Callable[[bytes], Any], content: bytes) -> Any:
    """Return a message, or a RequestError, to which gRPC has no status, if the content is no such message."""
    try:
        return parse(content)
    except DecodeError:
        return RequestError("request: expected a message of the method's type, got other bytes")


def status_code(error: RequestError) -> StatusCode:
    """Return the status code of an error."""
    return STATUS_CODES.get(error.status, StatusCode.INTERNAL)


def error_text(error: RequestError) -> str:
    """Return the text of an error, which may be long because it quotes the request."""
    return str(error)[:MAX_ERROR_CHARACTERS]


async def abort(context: ServicerContext, error: RequestError) -> NoReturn:
    """End a call with an error."""
    await context.abort(status_code(error), error_text(error))
    raise AssertionError  # never reached: `abort` raises
