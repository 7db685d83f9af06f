"""Serve a model repository: `python -m serving --help`."""

import argparse
import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import joblib
import uvicorn
from starlette.types import ASGIApp

from serving import models, rpc
from serving.app import create_app
from serving.bodies import Bodies
from serving.connection import Connection
from serving.errors import StartError
from serving.guard import LOOPBACK_HOSTS
from serving.limits import HANDSHAKE_SECONDS, Limits
from serving.repository import MODES, Repository, Verify

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "localhost")
UPGRADE_WARNINGS = ("Unsupported upgrade request.", "No supported WebSocket library")  # of Uvicorn, for every offer
GARBAGE_COLLECTION_OBJECTS = 10_000  # new ones until a collection; Python's default, 700, are those of few requests
MAX_PORT = 65535
BACKLOG = 2048  # connections that wait to be accepted, as in Uvicorn
DRAIN_SECONDS = 1  # of accepting requests after a signal: those that were sent before it have arrived by then


def main() -> None:
    """Run the server until SIGTERM, SIGINT or SIGHUP, which shut it down gracefully."""
    arguments = parse_arguments()
    with ThreadPoolExecutor(arguments.workers) as executor, asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(serve(arguments, executor))
        except StartError as error:
            sys.exit(f"serving: {error}")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it exists."""
    try:
        import uvloop
    except ImportError:  # on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def serve(arguments: argparse.Namespace, executor: ThreadPoolExecutor) -> None:
    """Load the models, and serve them over HTTP and gRPC until a signal. Raises StartError if that is impossible."""
    limits = Limits(
        max_body_bytes=arguments.max_body,
        max_pixels=arguments.max_pixels,
        max_connections=arguments.max_connections,
        timeout_seconds=arguments.timeout,
    )
    repository = Repository(
        arguments.repository,
        executor,
        arguments.model_control_mode,
        arguments.lock,
        signature_verifier(arguments.public_key),
        strict_readiness=arguments.strict_readiness,
    )
    repository.start(arguments.load_model if arguments.model_control_mode == "explicit" else ["*"])
    bodies = Bodies(limits)
    app = create_app(
        repository,
        executor,
        bodies,
        allowed_hosts=allowed_hosts(arguments),
        allowed_origins=arguments.allow_origin,
        log_requests=arguments.log_requests,
    )
    if arguments.trace:
        from serving import tracing  # needs the extra `trace`

        app = tracing.export(app)
    connections: dict[Connection, None] = {}
    credentials = tls = None
    if arguments.ssl_certfile:
        pair = (models.read_bytes(arguments.ssl_keyfile), models.read_bytes(arguments.ssl_certfile))
        credentials = grpc.ssl_server_credentials([pair])
        tls = create_tls_context(arguments.ssl_certfile, arguments.ssl_keyfile)
    http_server = create_http_server(app, limits)
    gc.freeze()  # so that no request waits until all objects of the imported modules have been searched for garbage
    gc.set_threshold(GARBAGE_COLLECTION_OBJECTS)
    listener = listen(arguments.host, arguments.port)
    host, port, *_ = listener.getsockname()
    print(f"serving: HTTP on {host}:{port} (Ctrl-C to quit)", file=sys.stderr, flush=True)
    async with (
        rpc.serve(repository, bodies, *grpc_address(arguments), credentials, arguments.log_requests) as stop_grpc,
        asyncio.TaskGroup() as tasks,
    ):
        polling = tasks.create_task(repository.poll(arguments.repository_poll_secs))
        running = asyncio.create_task(http_server.serve(sockets=[]))
        state = {"config": http_server.config, "server_state": http_server.server_state, "app_state": {}}
        accepting = await asyncio.get_running_loop().create_server(
            partial(Connection, limits, connections, **state),
            sock=listener,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
        )
        await wait_for_signal(http_server, running)
        repository.closing = True
        await asyncio.sleep(DRAIN_SECONDS)
        accepting.close()
        await asyncio.gather(stop_http(http_server, running, connections), stop_grpc())
        polling.cancel()


def create_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the configuration of TLS. Raises StartError if a file is invalid."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one, too
        raise StartError(f"{certificate}: expected a certificate and its key, got: {error}") from error
    return context


def create_http_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Return Uvicorn, which gets its connections from others."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.timeout_seconds,
        timeout_graceful_shutdown=limits.timeout_seconds,
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.getMessage().startswith(UPGRADE_WARNINGS))
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens for HTTP; port 0 is any free one. Raises StartError if the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        dual_stack = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise StartError(f"HTTP: expected a free address, got {host}:{port}: {error.strerror}") from error


def signature_verifier(public_key: Path | None) -> Verify | None:
    """Return a function that verifies a model's signature, if there is a key.

    Raises StartError without the library, or if the key cannot be used.
    """
    if public_key is None:
        return None
    try:
        from serving.signature import create_verifier, signed_reader
    except ImportError as error:
        raise StartError(f"--public-key: expected the packages of the extra `signing`, got: {error}") from error
    models.read_bytes(public_key)
    create_verifier(public_key)  # so that the key's fault is not reported as the models'
    return lambda folder, read_file: signed_reader(folder, public_key, read_file)


async def wait_for_signal(server: uvicorn.Server, running: asyncio.Task[None]) -> None:
    """Wait until Uvicorn has started, and then until a signal, or until Uvicorn ends."""
    while not server.started and not running.done():
        await asyncio.sleep(0)  # a longer wait would leave the first signals to Uvicorn
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for name in SIGNALS:  # instead of Uvicorn's handlers, which close connections whose requests have not been read
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)


async def stop_http(server: uvicorn.Server, running: asyncio.Task[None], connections: dict[Connection, None]) -> None:
    """Shut Uvicorn down when all requests that it has received are answered."""
    server.should_exit = True
    for connection in [*connections]:
        if connection.http is None:  # unknown to Uvicorn yet
            connection.close()
    await running


def grpc_address(arguments: argparse.Namespace) -> tuple[str, int]:
    """Return the host and the port for gRPC: by default, the port after that for HTTP, and any if that is any."""
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    default = arguments.port and arguments.port + 1
    return host, default if arguments.grpc_port is None else arguments.grpc_port


def allowed_hosts(arguments: argparse.Namespace) -> list[str]:
    """Return the names that the Host of a request may have; none: all."""
    if "*" in arguments.allowed_host or (not arguments.allowed_host and arguments.host not in LOOPBACK_ADDRESSES):
        return []
    return arguments.allowed_host or list(LOOPBACK_HOSTS)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve a model repository over the Open Inference Protocol (HTTP and gRPC), with a demo page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add_list = partial(add, action="append", default=[])
    add("repository", type=Path, nargs="?", default=models.REPOSITORY, help="directory with NAME/VERSION/model.onnx")
    add("--lock", type=Path, metavar="FILE", help="a dvc.lock: serve only files whose MD5 digests it records")
    add("--public-key", type=Path, metavar="FILE", help="serve only models that this key's owner has signed")
    add("--model-control-mode", choices=MODES, default="none", help="when models are loaded and unloaded")
    add_list("--load-model", metavar="NAME", help="load at start in explicit mode; *: all")
    add("--strict-readiness", action="store_true", help="be ready only if every model is")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all IPv4 interfaces")
    add("--port", type=port_number, default=8000, help="port for HTTP; 0: any free one")
    add("--grpc-port", type=port_number, metavar="PORT", help="port for gRPC (default: the one after --port)")
    add_list("--allowed-host", type=str.lower, metavar="NAME", help="accept requests whose Host is this; *: any")
    add_list("--allow-origin", metavar="URL", help="let pages of this origin send requests (CORS)")
    add("--ssl-certfile", type=Path, metavar="FILE", help="certificate chain: serve with TLS")
    add("--ssl-keyfile", type=Path, metavar="FILE", help="private key of the certificate")
    add_number = partial(add, type=positive_integer)
    add_number("--repository-poll-secs", default=15, metavar="SECONDS", help="interval of the mode poll")
    add_number("--workers", default=joblib.cpu_count(), help="batches that run in parallel")
    add_number("--max-body", default=Limits.max_body_bytes, metavar="BYTES", help="maximum request body, bytes")
    add_number("--max-pixels", default=Limits.max_pixels, metavar="N", help="maximum pixels per picture")
    add_number("--max-connections", default=Limits.max_connections, metavar="N", help="maximum open connections")
    add_number(
        "--timeout",
        default=Limits.timeout_seconds,
        metavar="SECONDS",
        help="maximum time to receive a request, to send a response, to keep an idle connection, and to shut down",
    )
    add("--trace", action="store_true", help="send OpenTelemetry traces over OTLP (extra `trace`)")
    add("--log-requests", action="store_true", help="print one line of JSON per request")
    arguments = parser.parse_args()
    if bool(arguments.ssl_certfile) != bool(arguments.ssl_keyfile):
        parser.error("expected --ssl-certfile and --ssl-keyfile together, got one of them")
    if arguments.load_model and arguments.model_control_mode != "explicit":
        parser.error(
            f"argument --load-model: expected --model-control-mode explicit, got {arguments.model_control_mode}"
        )
    if arguments.port == MAX_PORT and arguments.grpc_port is None:
        parser.error(f"argument --port: expected --grpc-port with {MAX_PORT}, as no port follows, got none")
    return arguments


def positive_integer(text: str) -> int:
    """Return the integer in a command-line argument. Raises ArgumentTypeError if it is below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def port_number(text: str) -> int:
    """Return the port in a command-line argument. Raises ArgumentTypeError if it is not one."""
    if not text.isdecimal() or not 0 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {MAX_PORT}, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
