"""Serve a model repository: `python -m serving --help`."""

import argparse
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import joblib
import uvicorn

from serving import models
from serving.app import create_app
from serving.connections import LimitedConnection
from serving.errors import StartError
from serving.limits import Limits


def main() -> None:
    """Run the server until SIGTERM or SIGINT, which shut it down gracefully."""
    arguments = parse_arguments()
    try:
        loaded = models.load_models(arguments.repository, arguments.threads, arguments.lock)
    except StartError as error:
        sys.exit(f"serving: {error}")
    limits = Limits(
        max_body_bytes=arguments.max_body,
        max_images=arguments.max_batch,
        max_pixels=arguments.max_pixels,
        max_connections=arguments.max_connections,
        timeout_seconds=arguments.timeout,
    )
    # After its graceful shutdown, Uvicorn raises the signal again: exit with status 0 instead of being killed by it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with ThreadPoolExecutor(arguments.workers) as executor:
        uvicorn.run(
            create_app(loaded, executor, limits, arguments.log_requests),
            host=arguments.host,
            port=arguments.port,
            http=partial(LimitedConnection, limits=limits),  # type: ignore[arg-type]  # only called, like a class
            loop="auto",
            lifespan="off",
            ws="none",
            access_log=False,
            server_header=False,
            timeout_keep_alive=limits.timeout_seconds,
            timeout_graceful_shutdown=limits.timeout_seconds,
        )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve a model repository over the Open Inference Protocol (HTTP), with a demo page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("repository", type=Path, nargs="?", default=models.REPOSITORY, help="directory with NAME/VERSION/model.onnx")
    add("--lock", type=Path, metavar="FILE", help="a dvc.lock: serve only files whose MD5 digests it records")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all IPv4 interfaces")
    add("--port", type=port_number, default=8000, help="port to listen on")
    add_number = partial(add, type=positive_integer)
    add_number("--threads", default=1, help="intra-op threads per session")
    add_number("--workers", default=joblib.cpu_count(), help="batches that run in parallel")
    add_number("--max-body", default=Limits.max_body_bytes, metavar="BYTES", help="maximum request body, bytes")
    add_number("--max-batch", default=Limits.max_images, metavar="N", help="maximum images per inference request")
    add_number("--max-pixels", default=Limits.max_pixels, metavar="N", help="maximum pixels per picture")
    add_number("--max-connections", default=Limits.max_connections, metavar="N", help="maximum open connections")
    add_number(
        "--timeout",
        default=Limits.timeout_seconds,
        metavar="SECONDS",
        help="maximum time to receive a request, to send a response, to keep an idle connection, and to shut down",
    )
    add("--log-requests", action="store_true", help="print one line of JSON per request")
    return parser.parse_args()


def positive_integer(text: str) -> int:
    """Return the integer in a command-line argument. Raises ArgumentTypeError if it is below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def port_number(text: str) -> int:
    """Return the port in a command-line argument. Raises ArgumentTypeError if it is not one."""
    if not text.isdecimal() or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
