"""Load generator: sends one request repeatedly over several connections, each of which waits for its response.

It is a process of its own: `python -m benchmarks.load_generator http|grpc PORT CONNECTIONS SECONDS < REQUEST` prints as
JSON the latency of each response in seconds, and the share of a core that it used itself, which shows whether it limits
the throughput that it measures. REQUEST is a whole HTTP/1.1 request, or the message of a gRPC call.
"""

import asyncio
import struct
import sys
import time
from typing import cast

import httptools
import orjson
import uvloop

# HTTP/2, RFC 9113: https://www.rfc-editor.org/rfc/rfc9113
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4  # a setting
DEFAULT_WINDOW, MAX_WINDOW = 2**16 - 1, 2**31 - 1
MAX_FRAME_SIZE = 2**14
CALL_HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/inference.GRPCInferenceService/ModelInfer",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


class Client(asyncio.Protocol):
    """A connection that sends the request again after each response, until the time `end`."""

    def __init__(self, request: bytes, end: float) -> None:
        self.request = request
        self.end = end
        self.latencies: list[float] = []
        self.status = "none"
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.start_request()

    def start_request(self) -> None:
        self.start = time.perf_counter()
        self.send_request()

    def send_request(self) -> None:
        raise NotImplementedError

    def response_received(self, status: str) -> None:
        now = time.perf_counter()
        self.latencies.append(now - self.start)
        self.status = status
        if status != "200" or now >= self.end:
            self.transport.close()
        else:  # not from within a parser, because send_request replaces it
            asyncio.get_running_loop().call_soon(self.start_request)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc or self.status != "200" or time.perf_counter() < self.end:
            error = RuntimeError(f"connection closed early, last status {self.status}")
            self.closed.set_exception(exc or error)
        else:
            self.closed.set_result(None)


class HttpClient(Client):
    """A connection of HTTP/1.1."""

    def send_request(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.response_received(str(self.parser.get_status_code()))


class GrpcClient(Client):
    """A connection of gRPC, with only what unary calls need of HTTP/2: a third of the CPU time of grpc.aio's client.

    Responses are not parsed: a response with a message is a success, because errors have none.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.received = bytearray()
        self.message = struct.pack(">BI", 0, len(self.request)) + self.request  # not compressed
        self.headers = b"".join(header_field(*field) for field in CALL_HEADERS.items())
        self.stream = -1
        self.connection_window = self.initial_window = DEFAULT_WINDOW
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, MAX_WINDOW)
        window_update = struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW)
        cast(asyncio.Transport, transport).write(
            PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window_update)
        )
        super().connection_made(transport)

    def send_request(self) -> None:
        self.stream += 2
        self.stream_window = self.initial_window
        self.unsent = memoryview(self.message)
        self.has_message = False
        self.transport.write(frame(HEADERS, END_HEADERS, self.stream, self.headers))
        self.send_data()

    def send_data(self) -> None:
        """Send as much of the message as the server's windows allow."""
        while (size := min(len(self.unsent), self.connection_window, self.stream_window, MAX_FRAME_SIZE)) > 0:
            flags = END_STREAM if size == len(self.unsent) else 0
            self.transport.write(frame(DATA, flags, self.stream, self.unsent[:size]))
            self.unsent = self.unsent[size:]
            self.connection_window -= size
            self.stream_window -= size

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 9 and len(self.received) >= (end := 9 + int.from_bytes(self.received[:3])):
            kind, flags, stream = struct.unpack_from(">BBI", self.received, 3)
            payload = bytes(self.received[9:end])
            del self.received[:end]
            self.frame_received(kind, flags, stream, payload)

    def frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self.has_message = True
        elif kind == HEADERS and flags & END_STREAM:
            self.response_received("200" if self.has_message else "of a gRPC error")
        elif kind == WINDOW_UPDATE and stream == 0:
            self.connection_window += int.from_bytes(payload)
            self.send_data()
        elif kind == WINDOW_UPDATE and stream == self.stream:
            self.stream_window += int.from_bytes(payload)
            self.send_data()
        elif kind == SETTINGS and not flags & ACK:
            change = dict(struct.iter_unpack(">HI", payload)).get(INITIAL_WINDOW_SIZE, self.initial_window)
            self.stream_window += change - self.initial_window
            self.initial_window = change
            self.transport.write(frame(SETTINGS, ACK, 0))
            self.send_data()
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind in (RESET, GOAWAY):
            self.status = "of a canceled gRPC call"
            self.transport.close()


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return b"".join([len(payload).to_bytes(3), struct.pack(">BBI", kind, flags, stream), payload])


def header_field(name: str, value: str) -> bytes:
    """Return a header field in HPACK: literal, not indexed, not compressed; name and value have under 127 bytes."""
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


CLIENTS: dict[str, type[Client]] = {"http": HttpClient, "grpc": GrpcClient}


async def generate_load(
    client: type[Client], request: bytes, port: int, connections: int, seconds: float
) -> list[float]:
    """Send the request over all connections, and return the latency of each response in seconds."""
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: client(request, end), "127.0.0.1", port)
        clients.append(connection)
    await asyncio.gather(*(each.closed for each in clients))
    return [latency for each in clients for latency in each.latencies]


def main() -> None:
    client, port, connections, seconds = CLIENTS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    request = sys.stdin.buffer.read()
    uvloop.run(generate_load(client, request, port, connections, seconds / 5))  # warm-up
    start, cpu_start = time.perf_counter(), time.process_time()
    latencies = uvloop.run(generate_load(client, request, port, connections, seconds))
    elapsed = time.perf_counter() - start
    cpu_share = (time.process_time() - cpu_start) / elapsed
    result = orjson.dumps({"latencies": latencies, "elapsed": elapsed, "cpu_share": cpu_share})
    with open(sys.stdout.fileno(), "wb") as output:  # sys.stdout may lose a part if PYTHONUNBUFFERED is set
        output.write(result)


if __name__ == "__main__":
    main()
