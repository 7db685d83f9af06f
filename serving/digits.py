"""From a picture of a digit to the image that MNIST's models know.

MNIST's digits were scaled into a box of 20 x 20 pixels, with their proportions kept and anti-aliased, and then moved so
that their centre of mass is in the middle of 28 x 28 pixels (http://yann.lecun.org/exdb/mnist/). Before that can be
done here, the digit has to be found.
"""

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps

from serving.errors import RequestError
from serving.models import Model

Image.MAX_IMAGE_PIXELS = None  # whoever asks says what is allowed
FORMATS = ("PNG", "JPEG", "WEBP")
UPRIGHT = {  # by the orientation that the metadata state
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDE = 28  # pixels
BOX = 20
SMALLEST, LARGEST = 100, 2048  # pictures are brought between these, before anything is looked for
GRID = 128  # squares across, in which parts of a picture are told apart
FINE = 120  # squares across a digit, in which its strokes are measured

SCANS = 200  # of a JPEG, which has about ten; each takes the time of a whole picture
CONTRAST = 24  # of 255, between ink and ground; less is an empty picture
INK = 0.35  # of the darkest ink: the line between ink and ground
SPECK = 0.05  # of the largest part's area: what is smaller is dirt
OTHER = 0.15  # of the largest part's area: what is larger, and apart from it, is another digit
NEAR = 0.1  # of the digit's size: parts within twice that distance belong together
TALL = 0.7  # of the digit's height: two such parts, one beside the other, are two digits
BLOT = 0.45  # of the size of what is drawn: wider strokes are none, as that of a disc, 0.5
SHEET = 0.9  # of the smallest rectangle around it: what fills as much is a sheet on another ground, or in a frame,
WRITTEN = 0.004  # if something is written on more than this share of it
FRAME = 0.8  # of each side of what is drawn: a part that takes up as much is a frame
PALE = 0.15  # of a stroke's ink: less is the halo that JPEG puts around it
THIN, THICK = 1.6, 4.2  # pixels in the box: strokes are brought between these


def suits(model: Model) -> bool:
    """Say whether the model sorts such images into classes that have names."""
    image, probabilities = model.inputs.get("image"), model.outputs.get("probabilities")
    return bool(
        image
        and len(model.inputs) == 1
        and (image.datatype, image.shape) == ("UINT8", (-1, 1, SIDE, SIDE))
        and probabilities
        and probabilities.shape == (-1, len(model.classes))
    )


def read(content: bytes, models: Iterable[Model], max_pixels: int) -> tuple[np.ndarray, dict[str, dict]]:
    """Return the digit of a picture as `normalize` does, and by the names of the models that suit it what each sees.

    That is the likeliest class under `label`, and under `probabilities` that of each class. Raises RequestError.
    """
    image = normalize(content, max_pixels)
    return image, {model.name: classify(model, image) for model in models if suits(model)}


def classify(model: Model, image: np.ndarray) -> dict[str, Any]:
    """Return the likeliest class of an image, uint8 [28, 28], and the probabilities of all."""
    (probabilities,) = model.run({"image": image[None, None]})["probabilities"]
    by_class = dict(zip(model.classes, probabilities.tolist()))
    return {"label": max(by_class, key=by_class.get), "probabilities": by_class}


def normalize(content: bytes, max_pixels: int) -> np.ndarray:
    """Return the digit in a PNG, JPEG or WebP file as MNIST has them, uint8 [28, 28], light on dark.

    Raises RequestError if there is not exactly one digit, or the file is no picture, or one of too many pixels.
    """
    picture = decode(content, max_pixels)
    ink, noise, mask = separate(picture)
    if rectangularity(mask) > SHEET:
        with contextlib.suppress(RequestError):  # nothing is written there
            written = separate(inside(picture, mask))
            if written[-1].mean() > WRITTEN:
                ink, noise, mask = written
    rows, columns = find(mask)
    ink, mask = ink[rows, columns] - 3 * noise, mask[rows, columns]
    ink = ink / np.percentile(ink[mask], 80)  # most of a stroke is 1; its edges are paler
    ink = ((ink - PALE) / (1 - PALE)).clip(0, 1)
    return centre(fit(blocks((255 * ink).astype(np.uint8), FINE, np.max)))


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Return the picture, upright and without transparency, as RGB."""
    unreadable = RequestError(f"this is no picture that can be read; allowed: {', '.join(FORMATS)}", 415)
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # its readers raise many kinds
        raise unreadable from error
    if picture.format == "JPEG" and content.count(b"\xff\xda") > SCANS:
        raise RequestError(f"the picture has too many scans; allowed: {SCANS}", 413)
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} x {picture.height}"
        raise RequestError(f"the picture has {size} pixels; allowed: {max_pixels:,} in all", 413)
    try:
        picture.load()
    except Exception as error:
        raise unreadable from error
    with contextlib.suppress(Exception):  # metadata may be broken where the picture is not
        picture = picture.transpose(UPRIGHT[picture.getexif()[ExifTags.Base.Orientation]])
    if picture.mode.startswith("I"):  # 16 bits
        picture = Image.fromarray((np.asarray(picture, np.float32) / 257).clip(0, 255).astype(np.uint8))
    picture = scale(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    return opaque(picture) if picture.mode == "RGBA" else picture


def scale(picture: Image.Image) -> Image.Image:
    """Bring a picture between SMALLEST and LARGEST."""
    longest = max(picture.size)
    if longest < SMALLEST:
        times = -(-SMALLEST // longest)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    return picture.reduce(-(-longest // LARGEST))


def opaque(picture: Image.Image) -> Image.Image:
    """Lay a picture on white if what is drawn on it is dark, else on black; return it as RGB."""
    alpha = np.asarray(picture.getchannel("A"), np.float32)
    grey = np.asarray(picture.convert("L"), np.float32)
    light = ((grey - 127.5) * alpha).sum() > 0
    ground = Image.new("RGBA", picture.size, "black" if light else "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def separate(picture: Image.Image) -> tuple[np.ndarray, float, np.ndarray]:
    """Tell ink from ground. Raises RequestError if there is no ink.

    Return how much each pixel differs from the ground, uint8 [height, width]; the ground's own noise; and where so much
    is different that it is ink, bool [height, width].
    """
    pixels = np.asarray(picture)
    across, down = (np.linspace(-1, 1, length, dtype=np.float32) for length in picture.size)
    surface, noise = ground(pixels, across, down)
    difference = np.zeros(pixels.shape[:2], np.float32)
    for channel in range(3):
        constant, x1, x2, y1, y2 = surface[:, channel]
        expected = (constant + x1 * across + x2 * across**2) + (y1 * down + y2 * down**2)[:, None]
        np.maximum(difference, np.abs(pixels[..., channel] - expected), out=difference)
    ink = difference.clip(0, 255).astype(np.uint8)
    strongest = float(np.asarray(Image.fromarray(ink).filter(ImageFilter.BoxBlur(1))).max())
    if strongest < max(CONTRAST, 6 * noise):
        raise RequestError("the picture is empty: nothing stands out from the ground", 422)
    return ink, noise, ink > max(INK * strongest, 4 * noise)


def ground(pixels: np.ndarray, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the colours at the picture's edge, so that light may fall from one side, and corners be dark.

    Return the factors of 1, x, x², y, y² for each channel, float32 [5, 3], with x and y from `across` and `down`, and
    the standard deviation from that surface.
    """
    edge = np.zeros(pixels.shape[:2], bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    y, x = np.nonzero(edge)
    terms = np.stack([np.ones(len(x), np.float32), across[x], across[x] ** 2, down[y], down[y] ** 2], axis=1)
    colours = pixels[y, x].astype(np.float32)
    distance = np.abs(colours - np.median(colours, axis=0)).max(axis=1)
    usual = distance <= max(2 * np.median(distance), 8)  # no ink
    surface, *_ = np.linalg.lstsq(terms[usual], colours[usual], rcond=None)
    return surface, float((colours[usual] - terms[usual] @ surface).std())


def rectangularity(mask: np.ndarray) -> float:
    """Return which share of the smallest rectangle around what is set, at any angle, it fills."""
    y, x = np.nonzero(fill(blocks(mask[bounds(mask)], GRID, np.max)))
    angles = np.radians(np.arange(0, 90, 3))
    cos, sin = np.cos(angles), np.sin(angles)
    corners = np.abs(cos) + np.abs(sin)  # how far a square of 1 x 1 reaches
    sides = [np.ptp(np.outer(a, x) + np.outer(b, y), axis=1) + corners for a, b in ((cos, sin), (-sin, cos))]
    return float(len(x) / (sides[0] * sides[1]).min())


def fill(mask: np.ndarray) -> np.ndarray:
    """Set what has something that is set to the left and to the right, above and below."""
    across, down = (
        np.maximum.accumulate(mask, axis) & np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
        for axis in (1, 0)
    )
    return across & down


def inside(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Return the sheet that is set, without its edge, on a ground of its own colour."""
    edge = 2 + max(mask.shape) // 100
    wide = np.pad(fill(mask), edge)
    near, far, middle = slice(None, -2 * edge), slice(2 * edge, None), slice(edge, -edge)
    whole = wide[near, middle] & wide[far, middle] & wide[middle, near] & wide[middle, far]
    if not whole.any():
        return picture
    pixels = np.array(picture)
    pixels[~whole] = np.median(pixels[whole][:: 1 + whole.sum() // 10_000], axis=0)
    return Image.fromarray(pixels[bounds(whole)])


def bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns around all that is set."""
    return tuple(slice(*np.flatnonzero(mask.any(axis=axis))[[0, -1]] + (0, 1)) for axis in (1, 0))


def find(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns around the one digit. Raises RequestError if there are several."""
    rows, columns = bounds(mask)
    amounts = blocks(mask[rows, columns], GRID, np.sum)
    step = block(mask[rows, columns], GRID)
    labels = unframe(keep(parts(amounts > 0), amounts, SPECK))
    boxes = [bounds(labels == label) for label in np.unique(labels[labels > 0])]
    size = max(max(y.stop - y.start, x.stop - x.start) for y, x in boxes)
    groups = parts(grow(labels > 0, max(1, round(NEAR * size)))) * (labels > 0)
    groups = keep(groups, amounts, OTHER)
    y, x = bounds(groups > 0)
    tall = [box_x for box_y, box_x in boxes if box_y.stop - box_y.start >= TALL * (y.stop - y.start)]
    beside = any(one.stop <= other.start for one in tall for other in tall)
    if beside or len(np.unique(groups[groups > 0])) > 1:
        raise RequestError("the picture shows several things apart from each other; allowed: one digit", 422)
    return (
        slice(rows.start + y.start * step, min(rows.start + y.stop * step, rows.stop)),
        slice(columns.start + x.start * step, min(columns.start + x.stop * step, columns.stop)),
    )


def block(array: np.ndarray, size: int) -> int:
    """Return the side of the squares that divide an array into at most `size` by `size`."""
    return -(-max(array.shape) // size)


def blocks(array: np.ndarray, size: int, function: Callable) -> np.ndarray:
    """Divide an array into at most `size` by `size` squares, and return what the function makes of each."""
    side = block(array, size)
    array = np.pad(array, [(0, -length % side) for length in array.shape])
    height, width = array.shape
    return function(array.reshape(height // side, side, width // side, side), axis=(1, 3))


def parts(mask: np.ndarray) -> np.ndarray:
    """Number what hangs together, diagonals included, int [height, width]; 0 is what is not set.

    Every cell starts with a number of its own and takes the largest around it, and what the cell of that number has.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        around = np.pad(labels, 1)
        around = np.maximum(np.maximum(around[:-2], around[1:-1]), around[2:])
        around = np.maximum(np.maximum(around[:, :-2], around[:, 1:-1]), around[:, 2:]) * mask
        around = np.append(0, around)[around]
        if (around == labels).all():
            return labels
        labels = around


def keep(labels: np.ndarray, amounts: np.ndarray, share: float) -> np.ndarray:
    """Return only the parts with at least this share of the largest part's amount."""
    totals = np.bincount(labels.ravel(), amounts.ravel())
    totals[0] = 0
    return np.where(totals[labels] >= share * totals.max(), labels, 0)


def unframe(labels: np.ndarray) -> np.ndarray:
    """Return the parts without one that runs along all four sides, if there are others."""
    sides = labels[0], labels[-1], labels[:, 0], labels[:, -1]
    frame = np.bincount(sides[0]).argmax()
    others = np.where(labels == frame, 0, labels)
    framed = all((side == frame).mean() > FRAME for side in sides) and others.any()
    return others if framed else labels


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Set what is within a square of this radius of what is set."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0


def fit(ink: np.ndarray) -> Image.Image:
    """Scale ink into the box, with strokes neither too thin nor too thick. Raises RequestError if there are none."""
    pixel = max(ink.shape) / BOX  # of the box, in those of the ink
    stroke = width(ink > 255 * INK)
    picture = Image.fromarray(ink)
    radius = round((np.clip(stroke, THIN * pixel, THICK * pixel) - stroke) / 2)
    if radius:
        kernel = ImageFilter.MaxFilter if radius > 0 else ImageFilter.MinFilter
        picture = ImageOps.expand(picture, abs(radius)).filter(kernel(2 * abs(radius) + 1))
        picture = picture.crop(picture.getbbox())
    if stroke > BLOT * max(ink.shape) or not picture.getbbox():
        raise RequestError("the picture shows a blot, no strokes; allowed: one digit", 422)
    times = BOX / max(picture.size)
    return picture.resize([max(1, round(side * times)) for side in picture.size], Image.Resampling.BILINEAR)


def width(mask: np.ndarray) -> float:
    """Return the width of strokes in pixels: their area by half the length of their outline.

    A line in any direction crosses from ground to ink, by rows and by columns, 4 / pi times for each pixel of its
    length, on average over the directions (Crofton's formula).
    """
    mask = np.pad(mask, 1)
    outline = np.pi / 4 * sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in (0, 1))
    return 2 * mask.sum() / outline


def centre(digit: Image.Image) -> np.ndarray:
    """Put the centre of mass in the middle, as near as whole pixels allow."""
    ink = np.asarray(digit, np.float64)
    image = np.zeros((SIDE, SIDE), np.uint8)
    at = []
    for axis, length in enumerate(ink.shape):
        mass = ink.sum(axis=1 - axis)
        middle = (mass @ np.arange(length)) / mass.sum()
        at.append(slice(start := min(max(round(SIDE / 2 - middle), 0), SIDE - length), start + length))
    image[tuple(at)] = ink
    return image
