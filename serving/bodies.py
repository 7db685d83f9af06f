"""Request bodies: received within limits on time and memory."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType

from starlette.requests import ClientDisconnect, Request

from serving import protocol
from serving.errors import RequestError
from serving.limits import MAX_CONCURRENT_BODIES, Limits


class Bodies:
    """The bodies of all unfinished requests, whose memory is limited.

    If a body exceeds the limit, the slowest upload is given up for it, so that clients who stall block nobody.
    """

    def __init__(self, limits: Limits):
        """Set the limits."""
        self.limits = limits
        self.max_bytes = limits.max_body_bytes * MAX_CONCURRENT_BODIES
        self.uploads: set[Upload] = set()
        self.bytes = 0

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a gRPC message of this size, in bytes. Raises RequestError if there is no memory for it."""
        self.bytes += size
        try:
            if self.bytes > self.max_bytes:
                self.make_room()
            yield
        finally:
            self.bytes -= size

    def make_room(self, newest: "Upload | None" = None) -> None:
        """Give up the slowest other upload that is incomplete. Raises RequestError if there is none."""
        incomplete = [upload for upload in self.uploads if upload.deadline and upload is not newest]
        if not incomplete:
            raise self.memory_error()
        min(incomplete, key=Upload.rate).give_up()

    def memory_error(self) -> RequestError:
        """Return the error for a body that does not fit into memory with the others."""
        error = f"bodies in memory: expected at most {self.max_bytes} bytes, got more; try again later"
        return RequestError(error, 503)


class Upload:
    """The body of one request, which counts against the memory limit inside `async with`."""

    def __init__(self, bodies: Bodies, request: Request):
        """Prepare to receive a body."""
        self.bodies = bodies
        self.request = request
        self.start = monotonic()
        self.content: bytes | bytearray = b""
        self.deadline: asyncio.Timeout | None = None  # while the server waits for the client
        self.given_up = False

    async def __aenter__(self) -> bytes | bytearray:
        """Return the body, decompressed.

        Raises RequestError if it is not complete in time, too large, or in an unknown or invalid content encoding.
        """
        encoding = self.request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *protocol.ENCODINGS):
            raise RequestError(f"Content-Encoding: expected identity, gzip or deflate, got {encoding!r}", 415)
        self.bodies.uploads.add(self)
        try:
            await self.receive_in_time()
            if encoding != "identity":
                limit = self.bodies.limits.max_body_bytes
                self.replace(await asyncio.to_thread(protocol.decompress, self.content, encoding, limit))
        except BaseException:
            self.close()
            raise
        return self.content

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the memory."""
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self.replace(b"")
        self.bodies.uploads.discard(self)

    async def receive_in_time(self) -> None:
        """Receive the body. Raises RequestError if it is not complete before the deadline, or exceeds a limit."""
        try:
            async with asyncio.timeout(self.bodies.limits.timeout_seconds) as self.deadline:
                await self.receive()
        except TimeoutError:
            if self.given_up:
                raise self.bodies.memory_error() from None
            raise RequestError(self.bodies.limits.timeout_error, 408) from None
        finally:
            self.deadline = None

    async def receive(self) -> None:
        """Receive the body. Raises RequestError if it exceeds a limit or is not as long as its Content-Length."""
        limit = self.bodies.limits.max_body_bytes
        connection = self.request.scope.get("state", {}).get("connection")
        length = int(self.request.headers.get("content-length", -1))
        more = length <= limit
        while more:
            message = await self.request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            self.append(message.get("body", b""))
            if connection:
                connection.use_data()
            if self.bodies.bytes > self.bodies.max_bytes:
                self.bodies.make_room(self)
            more = more and len(self.content) <= limit
        if max(length, len(self.content)) > limit:
            raise RequestError(f"body: expected at most {limit} bytes, got more", 413)
        if length not in (-1, len(self.content)):  # httptools takes no body after an offer to upgrade
            raise RequestError(f"body: expected {length} bytes, got {len(self.content)}")

    def append(self, chunk: bytes) -> None:
        """Add a part of the body, without a copy of the only one."""
        self.bodies.bytes += len(chunk)
        if not self.content:
            self.content = chunk
        elif isinstance(self.content, bytes):
            self.content = bytearray(self.content) + chunk
        else:
            self.content += chunk

    def replace(self, content: bytes) -> None:
        """Hold other content instead of the body."""
        self.bodies.bytes += len(content) - len(self.content)
        self.content = content

    def rate(self) -> float:
        """Return the bytes received per second."""
        return len(self.content) / (monotonic() - self.start + 1)

    def give_up(self) -> None:
        """Stop to wait for the client."""
        assert self.deadline
        self.given_up = True
        self.deadline.reschedule(asyncio.get_running_loop().time())
        self.deadline = None
        self.replace(b"")
