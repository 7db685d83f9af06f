"""Limits on what a client may send and on how long the server waits for it."""

from dataclasses import dataclass

MAX_HEADER_BYTES = 16 * 1024  # request line and header fields of one request
MAX_PIPELINED_REQUESTS = 32  # requests of one connection that wait until earlier ones are answered
MAX_CONCURRENT_BODIES = 32  # bodies of the maximum size that all unfinished requests may hold in memory together
MAX_JSON_CONTAINERS = 100_000  # arrays and objects of one request: parsing millions of them blocks the event loop
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
    max_images: int = 1024  # per inference request; max_batch_size in config.pbtxt
    max_pixels: int = 16_000_000  # width * height of a picture
    max_connections: int = 256
    timeout_seconds: int = 30  # to receive a request, to send a response, and to keep an idle connection open
