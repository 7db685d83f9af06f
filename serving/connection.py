"""TCP connections: Uvicorn's HTTP protocols behind limits on idle time and on the data that precede a request."""

import asyncio
import contextlib
import re
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.limits import HEADER_ERROR, LINGER_SECONDS, MAX_BUFFERED_BYTES, MAX_HEADER_BYTES, Limits

HEAD_BYTES = 4 * 1024  # read at a time outside bodies: bounds the requests that a client can pipeline
BODY_BYTES = 64 * 1024  # read at a time in bodies
HALF_CLOSED_SECONDS = 1  # until a request that arrived with the end of the stream has begun
# Until a connection counts as idle: before, its request may have been sent and not been read yet.
NEW_SECONDS, REUSED_SECONDS = 1, 0.1  # after it was accepted or data arrived, and after a response
UPGRADE_HEADER = re.compile(rb"^upgrade[ \t]*:", re.IGNORECASE | re.MULTILINE)


class Connection(asyncio.BufferedProtocol):
    """Passes a connection's bytes, unchanged, to one of Uvicorn's HTTP protocols, for which it is the transport.

    The protocol is httptools, or h11 if the first request offers an upgrade, which httptools would take for accepted.
    The application finds this object as `connection` in the request's state, and tells it when a request begins and
    ends: in between, the application itself limits the time.
    """

    def __init__(self, limits: Limits, connections: dict["Connection", None], **arguments: Any):
        """Create a connection. `connections` are the open ones, the longest idle first; `arguments` are Uvicorn's."""
        self.limits = limits
        self.connections = connections
        self.arguments = arguments | {"app_state": arguments["app_state"] | {"connection": self}}
        self.buffer = memoryview(bytearray(BODY_BYTES))
        self.head = b""  # of the first request, until it is complete
        self.http: asyncio.Protocol | None = None
        self.in_request = self.receiving = False  # the application answers a request, and waits for its body
        self.half_closed = False  # the client sends no more, but may still read
        self.discarding = False  # all responses are written, and what the client still sends is ignored
        self.unused_bytes = 0  # received since the application last took a request or a part of its body
        self.paused = False  # reading, until the application takes more
        self.loop = asyncio.get_running_loop()
        self.idle_from = self.loop.time() + NEW_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always that of TCP
        """Start to wait for a request; if there are too many connections, close the longest idle one."""
        self.timer = self.loop.call_later(self.limits.timeout_seconds, self.time_out)
        self.write_timer = self.linger_timer = self.timer
        self.transport = transport
        self.write, self.get_extra_info = transport.write, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        if len(self.connections) >= self.limits.max_connections:
            now = self.loop.time()
            idle = next((it for it in self.connections if not it.in_request and it.idle_from <= now), None)
            if idle is None:
                error = f"connections: expected at most {self.limits.max_connections}, got more; try again later"
                return self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, error)
            del self.connections[idle]
            idle.transport.abort()
        self.connections[self] = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer if self.receiving else self.buffer[:HEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Pass received bytes on, unless they exceed a limit."""
        if self.is_closing():
            return
        data = bytes(self.buffer[:nbytes])
        if not (self.head or self.unused_bytes):
            self.idle_from = self.loop.time() + NEW_SECONDS
        if self.http is None:
            self.head += data
            head, separator, _ = self.head.partition(b"\r\n\r\n")
            if len(head) > MAX_HEADER_BYTES:
                return self.check_head()
            if not separator:
                return
            data, self.head = self.head, b""
            self.http = (H11Protocol if UPGRADE_HEADER.search(head) else HttpToolsProtocol)(**self.arguments)
            self.http.connection_made(self)  # type: ignore[arg-type]  # has all of a transport that Uvicorn uses
        self.http.data_received(data)
        self.unused_bytes += nbytes
        if self.unused_bytes > (MAX_BUFFERED_BYTES if self.in_request else 2 * MAX_HEADER_BYTES) and not self.paused:
            self.paused = True
            self.pause_reading()
            self.loop.call_soon(self.check_head)  # after a complete request has begun

    def check_head(self) -> None:
        """Refuse a request whose headers are too long."""
        if not self.in_request and not self.is_closing():
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HEADER_ERROR)

    def eof_received(self) -> bool:
        """Keep the connection open for the response to a client that has sent everything."""
        self.half_closed = True
        if self.discarding:
            return False
        if self.http is None:
            self.refuse(HTTPStatus.BAD_REQUEST, "request: expected HTTP/1.1, got the end of the stream")
        elif not self.in_request or self.receiving:
            self.start_timer(HALF_CLOSED_SECONDS)
        return self.get_extra_info("sslcontext") is None  # TLS has no half-closed connections

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.timer, self.write_timer, self.linger_timer):
            timer.cancel()
        self.buffer = memoryview(b"")
        self.connections.pop(self, None)
        if self.http:
            self.http.connection_lost(exc)
        # Without these references, no cycle keeps the data that were not sent until the garbage collector runs.
        self.http, self.arguments, self.discarding, self.paused = None, {}, True, False
        del self.transport, self.write, self.get_extra_info, self.pause_reading, self.resume_reading

    def pause_writing(self) -> None:
        """Limit the time until a client reads its response."""
        self.write_timer = self.loop.call_later(self.limits.timeout_seconds, self.transport.abort)
        if self.http:
            self.http.pause_writing()

    def resume_writing(self) -> None:
        self.write_timer.cancel()
        if self.http:
            self.http.resume_writing()

    def begin_request(self, has_body: bool) -> None:
        """Leave the limits to the application, which calls this when it receives a request."""
        self.in_request, self.receiving = True, has_body
        self.timer.cancel()
        self.use_data()

    def end_body(self) -> None:
        """Note that the application has received the whole body."""
        self.receiving = False
        self.timer.cancel()

    def use_data(self) -> None:
        """Continue to read, because the application has taken a request or a part of its body."""
        self.unused_bytes = 0
        if self.paused:
            self.paused = False
            self.resume_reading()

    def end_request(self) -> None:
        """Wait for the next request, or close if this one is not complete. The application calls this at its end."""
        self.in_request, self.idle_from = False, self.loop.time() + REUSED_SECONDS
        if self.receiving:
            self.close()
        if self.connections.pop(self, self) is None:
            self.connections[self] = None  # as the one that has been idle for the shortest time
        if not self.is_closing():
            self.start_timer(HALF_CLOSED_SECONDS if self.half_closed else self.limits.timeout_seconds)
            if self.paused:
                self.loop.call_soon(self.check_head)

    def start_timer(self, seconds: float) -> None:
        """Close the connection after this time, instead of after an earlier limit."""
        self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self.time_out)

    def time_out(self) -> None:
        """Close an idle connection."""
        if self.head and not self.is_closing():
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, self.limits.timeout_error)
        else:
            self.close()

    def is_closing(self) -> bool:
        """Say whether no further response will be sent."""
        return self.discarding or self.transport.is_closing()

    def close(self) -> None:
        """Close the connection when the client has done so: at once, TCP might discard what it has not read yet."""
        if self.is_closing():
            return
        self.discarding = True
        self.write = lambda data: None  # such as the response to a pipelined request
        if self.half_closed or not self.transport.can_write_eof():
            self.transport.close()
        else:
            with contextlib.suppress(OSError):  # the client has closed the connection
                self.transport.write_eof()
            self.resume_reading()  # whoever has paused it, as only a read tells that the client has closed, too
        deadline = self.loop.time() + self.limits.timeout_seconds
        self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.linger, deadline)

    def linger(self, deadline: float) -> None:
        """Stop to wait for the client to close, unless it still reads the response."""
        if self.transport.get_write_buffer_size() and self.loop.time() < deadline:
            self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.linger, deadline)
        else:
            self.transport.abort()

    def refuse(self, status: HTTPStatus, error: str) -> None:
        """Send an error instead of a response, and close the connection."""
        body = orjson.dumps({"error": error})
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.close()
