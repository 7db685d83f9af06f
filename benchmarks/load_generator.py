"""Load generator: sends one request repeatedly over several connections, each of which waits for its response.

It is a process of its own: `python -m benchmarks.load_generator PORT CONNECTIONS SECONDS < REQUEST` prints as JSON the
latency of each response in seconds, and the share of a core that it used itself, which shows whether it limits the
throughput that it measures.
"""

import asyncio
import sys
import time
from typing import cast

import httptools
import orjson
import uvloop


class Client(asyncio.Protocol):
    """A connection that sends the request again after each response, until the time `end`."""

    def __init__(self, request: bytes, end: float) -> None:
        self.request = request
        self.end = end
        self.latencies: list[float] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send_request()

    def send_request(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.latencies.append(now - self.start)
        if self.parser.get_status_code() != 200 or now >= self.end:
            self.transport.close()
        else:  # not from within the parser's callback, because send_request replaces the parser
            asyncio.get_running_loop().call_soon(self.send_request)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc or time.perf_counter() < self.end:
            status = self.parser.get_status_code()
            self.closed.set_exception(exc or RuntimeError(f"connection closed early, last status {status}"))
        else:
            self.closed.set_result(None)


async def generate_load(request: bytes, port: int, connections: int, seconds: float) -> list[float]:
    """Send the request over all connections, and return the latency of each response in seconds."""
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, end), "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.closed for client in clients))
    return [latency for client in clients for latency in client.latencies]


def main() -> None:
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    request = sys.stdin.buffer.read()
    uvloop.run(generate_load(request, port, connections, seconds / 5))  # warm-up
    start, cpu_start = time.perf_counter(), time.process_time()
    latencies = uvloop.run(generate_load(request, port, connections, seconds))
    elapsed = time.perf_counter() - start
    cpu_share = (time.process_time() - cpu_start) / elapsed
    print(orjson.dumps({"latencies": latencies, "elapsed": elapsed, "cpu_share": cpu_share}).decode())


if __name__ == "__main__":
    main()
