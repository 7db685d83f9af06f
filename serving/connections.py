"""Connections: how many there may be, and that each ends in time, whatever the client does."""

import re
from asyncio import AbstractEventLoop, TimerHandle, Transport
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD = 16 * 1024  # bytes; of a request line and its headers
PIPELINE = 32  # requests that may wait behind one that is being answered
UPGRADE = re.compile(rb"^upgrade:", re.IGNORECASE | re.MULTILINE)


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with the limits that it lacks.

    Nothing is read while requests wait in the pipeline, or while a body has enough to go on with. Under `tasks` in a
    request's state, the application finds all requests that are under way.
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
        size: int,
    ):
        """Allow so many connections, bytes of a request, and seconds for it to arrive and for its answer to leave."""
        super().__init__(config, server_state, app_state | {"tasks": server_state.tasks}, _loop)
        self.limit = limit
        self.seconds = seconds
        self.size = size
        self.arriving = False  # a request, of which something is still to come
        self.in_head = False
        self.ended = False  # nothing more is taken
        self.received = 0  # bytes of the request that is arriving
        self.arrival: TimerHandle | None = None  # ends the wait for a request
        self.departure: TimerHandle | None = None  # ends the wait for a client that does not read

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self.await_request()
        if max(len(self.connections), len(self.tasks)) > self.limit:  # tasks outlive their connections
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.limit} connections are in use")

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrival = cancel(self.arrival)
        self.departure = cancel(self.departure)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self.ended:
            return
        self.received += len(data)
        super().data_received(data if self.arriving and not self.in_head else without_upgrade(data))
        if not self.arriving:
            self.received = 0
            if self.answered():
                self.await_request()
            return
        self.await_request()
        if self.in_head and self.received > HEAD:
            self.refuse_head()
        elif self.received > self.size:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request is too large; allowed: {self.size} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.arriving = self.in_head = True

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD:
            self.refuse_head()
            raise ValueError  # ends the parsing
        if len(self.pipeline) == PIPELINE:
            raise ValueError  # and no more is taken on this connection
        super().on_headers_complete()
        self.in_head = False

    def on_message_complete(self) -> None:
        self.arriving = False
        self.received = 0
        self.arrival = cancel(self.arrival)
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()  # else it would not be seen that the client leaves

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # which Uvicorn has resumed: more would come than is answered
        if self.transport.is_closing():
            self.await_departure()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.await_departure()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.departure = cancel(self.departure)

    def answered(self) -> bool:
        """Say whether no request is under way."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def await_request(self) -> None:
        if self.arrival is None:
            self.arrival = self.loop.call_later(self.seconds, self.refuse_late)

    def await_departure(self) -> None:
        if self.departure is None:
            self.departure = self.loop.call_later(self.seconds, self.transport.abort)

    def refuse_late(self) -> None:
        if not self.arriving:
            self.transport.abort()
        self.refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {self.seconds:g} seconds to arrive")

    def refuse_head(self) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are too long; allowed: {HEAD} bytes")

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP")

    def refuse(self, status: HTTPStatus, error: str) -> None:
        """Close the connection when the requests before are answered, or with this answer if none is under way."""
        if self.transport.is_closing():
            return
        in_body = self.arriving and not self.in_head  # of the request of the newest cycle
        if not in_body and not self.answered():
            self.cycle.keep_alive = False
            self.ended = True
            return
        if not in_body or not (self.pipeline or self.cycle.response_started):
            body = orjson.dumps({"error": error})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
        self.await_departure()


def without_upgrade(data: bytes) -> bytes:
    """Spoil the offer of another protocol in a request's head, for which the parser would leave out the body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"ignored:", head) + end + rest


def cancel(timer: TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
