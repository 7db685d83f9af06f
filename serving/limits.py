"""Limits on what a client may send and on how long the server waits for it."""

from dataclasses import dataclass

MAX_HEADER_BYTES = 16 * 1024  # request line and header fields of one request
HEADER_ERROR = f"headers: expected at most {MAX_HEADER_BYTES} bytes, got more"
MAX_BUFFERED_BYTES = 160 * 1024  # of one connection that the application has not asked for; Uvicorn pauses at 64 KiB
LINGER_SECONDS = 2  # of reading from a client that has got its last response and does not close the connection
MAX_CONCURRENT_BODIES = 32  # bodies of the maximum size that all unfinished requests may hold in memory together
MAX_JSON_ITEMS = 20_000  # arrays, objects and keys of one request: parsing more blocks the event loop
MAX_ELEMENTS = 100_000  # of one BYTES tensor: reading more of them, one by one, blocks the event loop
MAX_TENSORS = 1_000  # inputs and requested outputs of one gRPC request
HANDSHAKE_SECONDS = 5  # from the TCP connection to TLS, or to HTTP/2's preface
MIN_MESSAGE_SECONDS = 1  # to receive a gRPC message, even if others wait
MAX_CALLS = 100  # of one gRPC connection at a time; others have to wait in the client
MAX_WARMUP_SECONDS = 30  # of one model_warmup: meanwhile, no other model is loaded or unloaded
MAX_FORM_FIELDS = 100  # of one form, besides its file
MAX_JPEG_SCANS = 200  # usual files have about ten, and decoding one scan costs as much as a whole baseline picture
MAX_SEQUENTIAL_JPEG_FACTOR = 8  # times max_pixels: a JPEG of one scan is decoded at a reduced scale, in little memory
MAX_COMPONENTS = 10_000  # connected pieces of ink and dirt in a picture
MAX_PARTS = 256  # pieces of digits in a picture, after components have been cut
MAX_CANDIDATE_PIXELS = 100_000_000  # of all parts of a picture that may be digits, which overlap
MAX_ERROR_CHARACTERS = 500  # error texts may quote the request


@dataclass(frozen=True)
class Limits:
    """Limits that the command line sets, with their defaults."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_pixels: int = 16_000_000  # width * height of a picture
    max_connections: int = 256
    timeout_seconds: int = 30  # to receive a request, to send a response, and to keep an idle connection open

    @property
    def timeout_error(self) -> str:
        """Error for a request that was not received in time."""
        return f"request: expected to be complete after {self.timeout_seconds} seconds, got a part"
