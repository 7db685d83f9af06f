"""Connections: how many there may be, and that each ends in time, whatever the client does."""

from asyncio import AbstractEventLoop, TimerHandle, Transport
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD = 16 * 1024  # bytes; of a request line and its headers


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with the limits that it lacks.

    Under `tasks` in a request's state, the application finds all requests that are under way.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
        *,
        limit: int,
        seconds: float,
    ):
        """Allow so many connections, and so many seconds for each request to arrive."""
        super().__init__(config, server_state, app_state | {"tasks": server_state.tasks}, _loop)
        self.limit = limit
        self.seconds = seconds
        self.deadline: TimerHandle | None = None
        self.head_size: int | None = None  # in bytes, so far, while a head arrives
        self.arrived = False  # whether a request was complete with what came last

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self.await_request()
        if len(self.connections) > self.limit:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.limit} connections are in use")

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_awaiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.arrived = False
        super().data_received(data)
        if self.arrived:
            return
        self.await_request()
        if self.head_size is not None:
            self.head_size += len(data)
            if self.head_size > HEAD:
                self.refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_size = 0

    def on_headers_complete(self) -> None:
        self.head_size = None
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD:
            self.refuse_head()
            raise ValueError  # ends the parsing
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.arrived = True
        self.stop_awaiting()
        super().on_message_complete()

    def await_request(self) -> None:
        if self.deadline is None and not self.transport.is_closing():
            self.deadline = self.loop.call_later(self.seconds, self.refuse_late)

    def stop_awaiting(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # which does not wait until the client has read everything

    def refuse_late(self) -> None:
        self.refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {self.seconds:g} seconds to arrive")

    def refuse_head(self) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are too long; allowed: {HEAD} bytes")

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP")

    def refuse(self, status: HTTPStatus, error: str) -> None:
        """Close the connection, with an answer unless another has begun."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = orjson.dumps({"error": error})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
