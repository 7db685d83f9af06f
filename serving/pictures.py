"""Decode picture files within bounds of memory and time: upright, without transparency, 8 bits per channel."""

import contextlib
import io
import math
import re

import numpy as np
from PIL import ExifTags, Image

from serving.errors import RequestError
from serving.limits import MAX_JPEG_SCANS, MAX_SEQUENTIAL_JPEG_FACTOR

Image.MAX_IMAGE_PIXELS = None  # replaced by the argument `max_pixels`
FORMATS = ("PNG", "JPEG", "WEBP")
JPEG_FORMATS = ("JPEG", "MPO")  # Pillow's names; a file in MPO, as some phones write it, begins with a JPEG picture
HEIF_BRANDS = b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 avif avis".split()  # ISO/IEC 23008-12
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # JPEG's, without those that no length follows
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
TRANSPOSITIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_SIDEWAYS_ORIENTATION = 5  # from this one on, they swap width and height
MIN_SIDE, MAX_SIDE = 100, 2048  # pixels; pictures are resized until their longer side is within these


def decode_picture(content: bytes, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return the picture in a file as RGB, upright, resized and without transparency; and its own size.

    Raises RequestError.
    """
    picture = load_pixels(content, max_pixels)
    size = Image.open(io.BytesIO(content), formats=FORMATS).size
    with contextlib.suppress(Exception):  # metadata may be corrupt in a picture that is not
        orientation = picture.getexif()[ExifTags.Base.Orientation]
        picture = picture.transpose(TRANSPOSITIONS[orientation])
        size = size[::-1] if orientation >= FIRST_SIDEWAYS_ORIENTATION else size
    if picture.mode.startswith("I"):
        picture = reduce_bit_depth(picture)
    picture = resize_picture(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    return remove_transparency(picture) if picture.mode == "RGBA" else picture, size


def load_pixels(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP file within the limits; a large JPEG at a reduced scale. Raises RequestError."""
    found = "a file that cannot be decoded" if content else "an empty file"
    undecodable = RequestError(f"picture: expected {', '.join(FORMATS)}, got {found}", 415)
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        raise RequestError(f"picture: expected {', '.join(FORMATS)}, got HEIC or AVIF; save it as JPEG", 415)
    try:
        picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # Pillow's decoders raise many types
        raise undecodable from error
    is_jpeg = picture.format in JPEG_FORMATS
    scans = count_scans(content) if is_jpeg else 0
    if scans > MAX_JPEG_SCANS:
        raise RequestError(f"picture: expected at most {MAX_JPEG_SCANS} JPEG scans, got {scans}", 413)
    # Only a picture of one scan is decoded row by row; for several scans, libjpeg holds all coefficients in memory.
    limit = max_pixels * (MAX_SEQUENTIAL_JPEG_FACTOR if scans == 1 else 1)
    if picture.width * picture.height > limit:
        size = f"{picture.width} x {picture.height}"
        raise RequestError(f"picture: expected at most {limit:,} pixels, got {size}", 413)
    try:
        load_reduced(picture)
    except Exception as error:
        completed = load_without_end(content) if is_jpeg and not content.endswith(END_OF_IMAGE) else None
        if completed is None:
            raise undecodable from error
        return completed
    return picture


def count_scans(content: bytes) -> int:
    """Return the number of scans in a JPEG file's first picture, without those of thumbnails in its metadata.

    Phones append further pictures and videos. Follows ITU-T T.81, annex B: segments state their length, and a scan's
    data have no marker but those of restarts.
    """
    scans, position = 0, 2
    while (marker := MARKER.search(content, position)) and marker[0] != END_OF_IMAGE:
        scans += marker[0] == START_OF_SCAN
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return scans


def load_reduced(picture: Image.Image) -> None:
    """Decode an opened picture, if it is a large JPEG at a reduced scale. Raises what Pillow raises."""
    factor = math.ceil(max(picture.size) / MAX_SIDE)
    size = max(1, picture.width // factor), max(1, picture.height // factor)
    picture.draft(None, size)  # does nothing in other formats
    picture.load()


def load_without_end(content: bytes) -> Image.Image | None:
    """Return the picture of a JPEG file that lacks only the marker at its end, or None if it lacks more.

    If rows are missing, libjpeg takes zero bytes before the marker as their data, so that the picture changes.
    """
    picture, padded = (
        Image.open(io.BytesIO(content + padding + END_OF_IMAGE), formats=FORMATS) for padding in (b"", bytes(4096))
    )
    try:
        load_reduced(picture)
        load_reduced(padded)
    except Exception:  # as above
        return None
    return picture if picture.tobytes() == padded.tobytes() else None


def reduce_bit_depth(picture: Image.Image) -> Image.Image:
    """Return a gray picture of 16 bits per pixel with 8; its values may use only the lower 10, 12 or 14 bits."""
    values = np.asarray(picture, np.float32)
    bits = next((bits for bits in (8, 10, 12, 14) if values.max() < 2**bits), 16)
    return Image.fromarray((values * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8))


def resize_picture(picture: Image.Image) -> Image.Image:
    """Resize by an integer factor, so that the longer side is within MIN_SIDE and MAX_SIDE."""
    longest = max(picture.size)
    if longest < MIN_SIDE:
        factor = math.ceil(MIN_SIDE / longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    return picture.reduce(math.ceil(longest / MAX_SIDE))


def remove_transparency(picture: Image.Image) -> Image.Image:
    """Composite an RGBA picture on white if its visible pixels are dark, else on black; return RGB."""
    alpha = np.asarray(picture.getchannel("A"), np.float32)
    gray = np.asarray(picture.convert("L"), np.float32)
    is_light = ((gray - 127.5) * alpha).sum() > 0
    background = Image.new("RGBA", picture.size, "black" if is_light else "white")
    return Image.alpha_composite(background, picture).convert("RGB")
