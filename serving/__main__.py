"""Serve a model repository: `python -m serving --help`."""

import argparse
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import uvicorn

from serving import app, models
from serving.app import Limits
from serving.connections import HEAD, Connection
from serving.errors import StartError


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve a model repository over the Open Inference Protocol, with a page to draw on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("repository", type=Path, nargs="?", default=models.REPOSITORY, help="a folder of NAME/VERSION/model.onnx")
    add("--lock", type=Path, metavar="DVC.LOCK", help="serve only files with the digests in this dvc.lock")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all")
    add("--port", type=port, default=8000)
    add("--threads", type=positive, default=1, help="that the runtime has for one batch")
    add("--workers", type=positive, default=os.cpu_count(), help="batches that run at the same time")
    add("--max-body", type=positive, default=Limits.body, metavar="BYTES", help="of a request")
    add("--max-batch", type=positive, default=Limits.batch, metavar="IMAGES", help="of a request")
    add("--max-pixels", type=positive, default=Limits.pixels, metavar="PIXELS", help="of a picture")
    add("--max-connections", type=positive, default=256, metavar="NUMBER", help="at the same time")
    add("--timeout", type=positive, default=30, metavar="SECONDS", help="to send a request, or the next one")
    add("--log-requests", action="store_true", help="print a line of JSON for each request")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise ValueError
    return number


def main() -> None:
    given = options()
    try:
        loaded = models.load(given.repository, given.threads, given.lock)
    except StartError as error:
        sys.exit(f"serving: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # where Uvicorn passes the signal on, when all is answered
    limits = Limits(given.max_body, given.max_batch, given.max_pixels)
    with ThreadPoolExecutor(given.workers) as executor:
        uvicorn.run(
            app.create(loaded, executor, limits, given.log_requests),
            host=given.host,
            port=given.port,
            http=partial(
                Connection, limit=given.max_connections, seconds=given.timeout, size=2 * (given.max_body + HEAD)
            ),
            loop="auto",
            lifespan="off",
            ws="none",
            access_log=False,
            server_header=False,
            timeout_keep_alive=given.timeout,
            timeout_graceful_shutdown=given.timeout,
        )


if __name__ == "__main__":
    main()
