"""A load of the same request again and again, over some connections, each of which waits for its answer.

It runs as a process of its own, `python -m benchmarks.load PORT CONNECTIONS SECONDS < REQUEST`, and prints in JSON how
many seconds each answer took, and what share of a core the load itself did: it should not be what is measured.
"""

import asyncio
import sys
import time

import httptools
import orjson
import uvloop


class Client(asyncio.Protocol):
    """A connection that sends the request anew with each answer, until time is up."""

    def __init__(self, request: bytes, end: float):
        self.request = request
        self.end = end
        self.seconds: list[float] = []
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        if self.parser.get_status_code() != 200 or now >= self.end:
            self.transport.close()
        else:
            asyncio.get_running_loop().call_soon(self.send)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc or time.perf_counter() < self.end:
            self.closed.set_exception(exc or RuntimeError(f"closed early, status {self.parser.get_status_code()}"))
        else:
            self.closed.set_result(None)


async def load(request: bytes, port: int, connections: int, seconds: float) -> list[float]:
    """Return how many seconds each answer took."""
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, end), "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.closed for client in clients))
    return [seconds for client in clients for seconds in client.seconds]


def main() -> None:
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    request = sys.stdin.buffer.read()
    uvloop.run(load(request, port, connections, seconds / 5))  # warm-up
    start, busy = time.perf_counter(), time.process_time()
    answers = uvloop.run(load(request, port, connections, seconds))
    wall = time.perf_counter() - start
    print(orjson.dumps({"seconds": answers, "wall": wall, "busy": (time.process_time() - busy) / wall}).decode())


if __name__ == "__main__":
    main()
