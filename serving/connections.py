"""HTTP connections with limits on their number, on the size of requests and on every wait for the client."""

import re
from asyncio import AbstractEventLoop, TimerHandle, Transport
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from serving.limits import MAX_HEADER_BYTES, MAX_PIPELINED_REQUESTS, Limits

UPGRADE_HEADER = re.compile(rb"^upgrade:", re.IGNORECASE | re.MULTILINE)


class LimitedConnection(HttpToolsProtocol):
    """Uvicorn's httptools connection with the limits and timeouts that it lacks.

    Reading pauses while pipelined requests wait, or while enough of a body is buffered. `tasks` in a request's state is
    the set of all requests that the server is working on.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ):
        """Create a connection; the first four arguments are Uvicorn's."""
        super().__init__(config, server_state, app_state | {"tasks": server_state.tasks}, _loop)
        self.max_connections = limits.max_connections
        self.timeout_seconds = limits.timeout_seconds
        self.max_request_bytes = 2 * (limits.max_body_bytes + MAX_HEADER_BYTES)  # leaves room for chunk sizes
        self.receiving = False  # a request has begun and is not complete
        self.receiving_headers = False
        self.discarding = False  # everything that the client still sends is ignored
        self.received_bytes = 0  # of the request that is being received
        self.receive_timer: TimerHandle | None = None
        self.close_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # Uvicorn's signature
        """Start to wait for a request, or refuse the connection if there are too many."""
        super().connection_made(transport)
        self.start_receive_timer()
        # Requests may outlive their connections, so both are counted.
        if max(len(self.connections), len(self.tasks)) > self.max_connections:
            error = f"connections: expected at most {self.max_connections}, got more; try again later"
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self.stop_receive_timer()
        self.stop_close_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, unless they exceed a limit."""
        if self.transport.is_closing() or self.discarding:
            return
        self.received_bytes += len(data)
        in_body = self.receiving and not self.receiving_headers
        super().data_received(data if in_body else disable_upgrade(data))
        if not self.receiving:
            self.received_bytes = 0
            if self.is_idle():
                self.start_receive_timer()
            return
        self.start_receive_timer()
        if self.receiving_headers and self.received_bytes > MAX_HEADER_BYTES:
            self.send_header_error()
        elif self.received_bytes > self.max_request_bytes:
            error = f"request: expected at most {self.max_request_bytes} bytes, got more"
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)

    def on_message_begin(self) -> None:
        """Note that a request has begun (parser callback)."""
        super().on_message_begin()
        self.receiving = self.receiving_headers = True

    def on_headers_complete(self) -> None:
        """Start or queue a request whose headers are within the limits (parser callback)."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            self.send_header_error()
            raise ValueError  # makes the parser stop
        if len(self.pipeline) == MAX_PIPELINED_REQUESTS:
            raise ValueError  # the parser's error closes the connection after the pending responses
        super().on_headers_complete()
        self.receiving_headers = False

    def on_message_complete(self) -> None:
        """Stop the timer when a request is complete (parser callback)."""
        self.receiving = False
        self.received_bytes = 0
        self.stop_receive_timer()
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()  # a closed connection is noticed only while reading

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request, or wait for the client to read the last response."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # Uvicorn resumes it, and requests would arrive faster than they are answered
        if self.transport.is_closing():
            self.start_close_timer()

    def pause_writing(self) -> None:
        """Wait for a client that does not read its response."""
        super().pause_writing()
        self.start_close_timer()

    def resume_writing(self) -> None:
        """Stop the timer when the client reads again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.stop_close_timer()

    def is_idle(self) -> bool:
        """Say whether every received request is answered."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def start_receive_timer(self) -> None:
        """Limit the time until a request is complete, unless that timer is running."""
        if self.receive_timer is None:
            self.receive_timer = self.loop.call_later(self.timeout_seconds, self.receive_timed_out)

    def start_close_timer(self) -> None:
        """Limit the time until the client has read the response, unless that timer is running."""
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(self.timeout_seconds, self.transport.abort)

    def stop_receive_timer(self) -> None:
        """Cancel the timer of the request that is being received."""
        if self.receive_timer is not None:
            self.receive_timer.cancel()
        self.receive_timer = None

    def stop_close_timer(self) -> None:
        """Cancel the timer of the response that is being sent."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = None

    def receive_timed_out(self) -> None:
        """Close an idle connection, or one whose request is incomplete after the timeout."""
        if not self.receiving:
            self.transport.abort()
        error = f"request: expected to be complete after {self.timeout_seconds:g} seconds, got a part"
        self.send_error(HTTPStatus.REQUEST_TIMEOUT, error)

    def send_header_error(self) -> None:
        """Refuse a request whose headers are too long."""
        error = f"headers: expected at most {MAX_HEADER_BYTES} bytes, got more"
        self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, in the server's own format (called by Uvicorn)."""
        self.send_error(HTTPStatus.BAD_REQUEST, "request: expected HTTP/1.1, got other data")

    def send_error(self, status: HTTPStatus, error: str) -> None:
        """Send an error and close the connection, or close it after the responses to earlier requests."""
        if self.transport.is_closing():
            return
        in_body = self.receiving and not self.receiving_headers  # then self.cycle is that request's
        if not in_body and not self.is_idle():
            self.cycle.keep_alive = False
            self.discarding = True
            return
        if not in_body or not (self.pipeline or self.cycle.response_started):
            body = orjson.dumps({"error": error})
            headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + headers + body)
        self.transport.close()
        self.start_close_timer()


def disable_upgrade(data: bytes) -> bytes:
    """Rename an Upgrade header: the parser would take the body of such a request for another protocol's data."""
    headers, separator, body = data.partition(b"\r\n\r\n")
    return UPGRADE_HEADER.sub(b"ignored:", headers) + separator + body
