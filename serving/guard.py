"""ASGI middleware in front of the application: which requests are let in, and the state of their connections."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.limits import HEADER_ERROR, MAX_HEADER_BYTES
from serving.responses import error_response

if TYPE_CHECKING:
    from serving.connection import Connection  # which needs Uvicorn; the application does not

BODY_HEADERS = (b"content-length", b"transfer-encoding")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # that change nothing
UNREAD_BODY_SECONDS, UNREAD_BODY_PARTS = 0.1, 4  # of waiting for the rest of a body that nobody has asked for
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Refuses requests of other hosts and origins, and tells a `Connection` when its request begins and ends.

    An allow-list of hosts stops DNS rebinding, by which a web page reaches a server on the loopback interface. A check
    of the origin stops cross-site request forgery: browsers send some POST requests without asking the server first.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str], allowed_origins: Collection[str]):
        """Wrap an application; without `allowed_hosts`, requests may name any host."""
        self.app = app
        self.allowed_hosts = allowed_hosts
        self.allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or send an error instead."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        hosts, size, headers = [], len(scope["path"]), {}
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            headers[name] = value
            if name == b"host":
                hosts.append(value.decode("latin-1").lower())
        if b"upgrade" in headers:  # nobody may take what follows for another request
            send = closing(send)
        connection = scope.get("state", {}).get("connection")
        if connection:
            has_body = any(name in headers for name in BODY_HEADERS)
            connection.begin_request(has_body)
            if has_body:
                receive, send = with_body(connection, receive, send)
        try:
            if error := self.find_host_error(hosts, size) or self.find_origin_error(scope["method"], headers, hosts[0]):
                await error(scope, receive, closing(send))
            else:
                await self.app(scope, receive, send)
        finally:
            if connection:
                connection.end_request()

    def find_host_error(self, hosts: list[str], size: int) -> Response | None:
        """Return the error for these Host headers and this size of all headers, in bytes."""
        if len(hosts) != 1:
            return error_response(400, f"Host: expected one header, got {len(hosts)}")
        name = hosts[0] if hosts[0].endswith("]") else hosts[0].rpartition(":")[0] or hosts[0]  # without the port
        if self.allowed_hosts and name not in self.allowed_hosts:
            expected = f"{' or '.join(self.allowed_hosts)} (--allowed-host adds others)"
            return error_response(400, f"Host: expected {expected}, got {name!r}")
        if size > MAX_HEADER_BYTES:
            return error_response(431, HEADER_ERROR)
        return None

    def find_origin_error(self, method: str, headers: dict[bytes, bytes], host: str) -> Response | None:
        """Return the error for a request of another site's page.

        The header Sec-Fetch-Site says so, and in older browsers, an Origin that is not the Host:
        https://words.filippo.io/csrf/
        """
        origin = headers.get(b"origin", b"").decode("latin-1")
        site = headers.get(b"sec-fetch-site")
        if method in SAFE_METHODS or not (site or origin) or not {origin, "*"}.isdisjoint(self.allowed_origins):
            return None
        same = site in (b"same-origin", b"none") if site else origin.partition("://")[2] == host
        return None if same else error_response(403, f"Origin: expected this server or --allow-origin, got {origin!r}")


def with_body(connection: "Connection", receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return functions for a request with a body, which tell the connection when it has been received.

    A response that is sent before that closes the connection, unless the rest of the body has already arrived.
    """

    async def receive_part() -> Message:
        message = await receive()
        if not message.get("more_body", False):
            connection.end_body()
        return message

    async def send_after_body(message: Message) -> None:
        if connection.receiving and message["type"] == "http.response.start":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNREAD_BODY_SECONDS):
                    for _ in range(UNREAD_BODY_PARTS):
                        if connection.receiving:
                            await receive_part()
        await (closing(send) if connection.receiving else send)(message)

    return receive_part, send_after_body


def closing(send: Send) -> Send:
    """Return a function that sends a response and asks the server to close the connection after it."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        await send(message)

    return send_and_close
