"""Find the digit in a picture and center and scale it like MNIST, for the models to classify.

MNIST's digits were scaled into a box of 20 x 20 pixels, with their aspect ratio kept and anti-aliasing, and then moved
so that their center of mass is at the center of 28 x 28 pixels (http://yann.lecun.org/exdb/mnist/).

"Ink" is how much a pixel differs from the background, from 0 to 255, whichever of the two is darker.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from serving.errors import RequestError
from serving.models import Model
from serving.pictures import decode_picture

Gray = npt.NDArray[np.uint8]  # [height, width]
Mask = npt.NDArray[np.bool_]  # [height, width]
Labels = npt.NDArray[np.int64]  # [height, width]; 0: background
Box = tuple[slice, slice]  # rows, columns

IMAGE_SIDE = 28  # pixels
DIGIT_BOX_SIDE = 20  # pixels of the image
SEGMENTATION_CELLS = 128  # along the longer side of what is drawn; components are labelled on these cells
STROKE_CELLS = 120  # along the longer side of the digit; strokes are measured on these cells

MIN_CONTRAST = 24  # of 255; the picture counts as empty below
INK_THRESHOLD = 0.35  # fraction of the strongest ink
MIN_COMPONENT_AREA = 0.05  # fraction of the largest component's; smaller ones are dirt
MIN_OBJECT_AREA = 0.15  # fraction of the largest group's; a group of at least this area is an object of its own
GROUPING_RADIUS = 0.1  # fraction of the largest component's side; components within twice this radius are grouped
MIN_DIGIT_HEIGHT = 0.7  # fraction of the height of the whole; two components side by side as high are two digits
MAX_STROKE_WIDTH = 0.45  # fraction of the digit's longer side; wider shapes have no strokes (a disc has 0.5)
MIN_SHEET_EXTENT = 0.9  # area divided by the minimum-area rectangle's; a sheet of paper on another background
MIN_SHEET_INK = 0.004  # fraction of the sheet's pixels that are ink, if something is written on it
MIN_FRAME_COVERAGE = 0.8  # fraction of each of the four sides that a frame touches
HALO_INK = 0.15  # fraction of a stroke's ink; JPEG compression leaves weaker ink around strokes
MIN_STROKE_PIXELS, MAX_STROKE_PIXELS = 1.6, 4.2  # in the box; thinner strokes are dilated, thicker ones eroded


def is_digit_classifier(model: Model) -> bool:
    """Say whether the model takes one image as MNIST has it, and returns the probability of each labelled class."""
    image, probabilities = model.inputs.get("image"), model.outputs.get("probabilities")
    return bool(
        image
        and len(model.inputs) == 1
        and (image.datatype, image.shape) == ("UINT8", (-1, 1, IMAGE_SIDE, IMAGE_SIDE))
        and probabilities
        and probabilities.shape == (-1, len(model.labels))
    )


def classify_picture(
    content: bytes, models: Iterable[Model], max_pixels: int
) -> tuple[Gray, dict[str, dict[str, Any]]]:
    """Return the normalized digit of a picture, uint8 [28, 28], and each digit classifier's prediction by model name.

    A prediction has the most probable class as `label`, and the `probabilities` of all classes. Raises RequestError.
    """
    image = normalize_picture(content, max_pixels)
    return image, {model.name: classify_image(model, image) for model in models if is_digit_classifier(model)}


def classify_image(model: Model, image: Gray) -> dict[str, Any]:
    """Return the most probable class of an image, uint8 [28, 28], and the probabilities of all classes."""
    (probabilities,) = model.run({"image": image[None, None]})["probabilities"]
    by_label: dict[str, float] = dict(zip(model.labels, probabilities.tolist()))
    return {"label": max(by_label, key=by_label.__getitem__), "probabilities": by_label}


def normalize_picture(content: bytes, max_pixels: int) -> Gray:
    """Return the digit in a PNG, JPEG or WebP file as MNIST has it, uint8 [28, 28], light on dark.

    Raises RequestError if the file is not such a picture, has too many pixels, or does not show exactly one object.
    """
    picture = decode_picture(content, max_pixels)
    ink, noise, mask = segment_ink(picture)
    if extent(mask) > MIN_SHEET_EXTENT:
        with contextlib.suppress(RequestError):  # the sheet is empty, so it is the object itself
            sheet_ink, sheet_noise, sheet_mask = segment_ink(crop_sheet(picture, mask))
            if sheet_mask.mean() > MIN_SHEET_INK:
                ink, noise, mask = sheet_ink, sheet_noise, sheet_mask
    box = locate_digit(mask)
    digit = ink[box] - 3 * noise
    digit = digit / np.percentile(digit[mask[box]], 80)  # 1 inside strokes, less at their edges
    digit = ((digit - HALO_INK) / (1 - HALO_INK)).clip(0, 1)
    return center_by_mass(scale_to_box(block_reduce((255 * digit).astype(np.uint8), STROKE_CELLS, np.max)))


def segment_ink(picture: Image.Image) -> tuple[Gray, float, Mask]:
    """Separate ink from the background; return the ink, the background's noise, and the mask of ink pixels.

    The noise is a standard deviation in gray levels. Raises RequestError if the picture is empty.
    """
    pixels = np.asarray(picture)
    x, y = (np.linspace(-1, 1, length, dtype=np.float32) for length in picture.size)
    coefficients, noise = fit_background(pixels, x, y)
    difference = np.zeros(pixels.shape[:2], np.float32)
    for channel in range(3):
        constant, x1, x2, y1, y2 = coefficients[:, channel]
        background = (constant + x1 * x + x2 * x**2) + (y1 * y + y2 * y**2)[:, None]
        np.maximum(difference, np.abs(pixels[..., channel] - background), out=difference)
    ink = difference.clip(0, 255).astype(np.uint8)
    strongest = float(np.asarray(Image.fromarray(ink).filter(ImageFilter.BoxBlur(1))).max())
    if strongest < max(MIN_CONTRAST, 6 * noise):
        raise RequestError("picture: expected a digit, got an empty picture", 422)
    return ink, noise, ink > max(INK_THRESHOLD * strongest, 4 * noise)


def fit_background(
    pixels: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """Fit a quadratic surface to the colors at the picture's border, to model uneven light and vignetting.

    Return the coefficients of 1, x, x², y, y² for each channel, float32 [5, 3], with the coordinates of columns and
    rows in `x` and `y`, and the residuals' standard deviation.
    """
    border = np.zeros(pixels.shape[:2], bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    rows, columns = np.nonzero(border)
    across, down = x[columns], y[rows]
    terms = np.stack([np.ones_like(across), across, across**2, down, down**2], axis=1)
    colors = pixels[border].astype(np.float32)
    distance = np.abs(colors - np.median(colors, axis=0)).max(axis=1)
    inliers = distance <= max(2 * np.median(distance), 8)  # without ink that touches the border
    coefficients, *_ = np.linalg.lstsq(terms[inliers], colors[inliers], rcond=None)
    return coefficients, float((colors[inliers] - terms[inliers] @ coefficients).std())


def extent(mask: Mask) -> float:
    """Return the filled mask's area divided by its minimum-area rectangle's, over rotations in steps of 3 degrees."""
    y, x = np.nonzero(fill_rows_and_columns(block_reduce(mask[bounding_box(mask)], SEGMENTATION_CELLS, np.max)))
    angles = np.radians(np.arange(0, 90, 3))
    cos, sin = np.cos(angles), np.sin(angles)
    cell = np.abs(cos) + np.abs(sin)  # side of a rotated cell's bounding box
    width, height = (np.ptp(np.outer(a, x) + np.outer(b, y), axis=1) + cell for a, b in ((cos, sin), (-sin, cos)))
    return float(len(x) / (width * height).min())


def fill_rows_and_columns(mask: Mask) -> Mask:
    """Set every pixel that lies between set pixels of its row and between set pixels of its column."""
    by_row, by_column = (
        np.maximum.accumulate(mask, axis) & np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
        for axis in (1, 0)
    )
    return by_row & by_column


def crop_sheet(picture: Image.Image, mask: Mask) -> Image.Image:
    """Return the sheet of paper in the mask without its edge; pixels outside get the sheet's median color."""
    edge = 2 + max(mask.shape) // 100
    filled = np.pad(fill_rows_and_columns(mask), edge)
    before, after, middle = slice(None, -2 * edge), slice(2 * edge, None), slice(edge, -edge)
    eroded = filled[before, middle] & filled[after, middle] & filled[middle, before] & filled[middle, after]
    if not eroded.any():
        return picture
    pixels = np.array(picture)
    pixels[~eroded] = np.median(pixels[eroded][:: 1 + eroded.sum() // 10_000], axis=0)
    return Image.fromarray(pixels[bounding_box(eroded)])


def bounding_box(mask: npt.NDArray[Any]) -> Box:
    """Return the rows and columns of the smallest box around all non-zero elements."""
    (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    return slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)


def locate_digit(mask: Mask) -> Box:
    """Return the bounding box of the one digit. Raises RequestError if there are several objects."""
    drawn = bounding_box(mask)
    side = block_side(mask[drawn], SEGMENTATION_CELLS)
    areas = block_reduce(mask[drawn], SEGMENTATION_CELLS, np.sum)
    components = remove_frame(remove_small(label_components(areas > 0), areas, MIN_COMPONENT_AREA))
    boxes = [bounding_box(components == label) for label in np.unique(components[components > 0])]
    largest = max(max(span(rows), span(columns)) for rows, columns in boxes)
    radius = max(1, round(GROUPING_RADIUS * largest))
    groups = label_components(dilate(components > 0, radius)) * (components > 0)
    groups = remove_small(groups, areas, MIN_OBJECT_AREA)
    rows, columns = bounding_box(groups)
    tall = [box[1] for box in boxes if span(box[0]) >= MIN_DIGIT_HEIGHT * span(rows)]
    side_by_side = any(one.stop <= other.start for one in tall for other in tall)
    if side_by_side or len(np.unique(groups[groups > 0])) > 1:
        raise RequestError("picture: expected one digit, got several separate objects", 422)
    return scale_slice(rows, side, drawn[0]), scale_slice(columns, side, drawn[1])


def span(indices: slice) -> int:
    """Return the number of indices in a slice from start to stop."""
    return int(indices.stop - indices.start)


def scale_slice(cells: slice, side: int, drawn: slice) -> slice:
    """Return the pixels of a range of cells with this side, of which the first begins where `drawn` does."""
    return slice(drawn.start + cells.start * side, min(drawn.start + cells.stop * side, drawn.stop))


def block_side(array: npt.NDArray[Any], cells: int) -> int:
    """Return the side in pixels of the square blocks that divide an array into at most `cells` x `cells`."""
    side: int = math.ceil(max(array.shape) / cells)
    return side


def block_reduce(array: npt.NDArray[Any], cells: int, function: Callable[..., Any]) -> npt.NDArray[Any]:
    """Divide an array into at most `cells` x `cells` square blocks, and reduce each with a function such as np.max."""
    side = block_side(array, cells)
    array = np.pad(array, [(0, -size % side) for size in array.shape])
    height, width = array.shape
    reduced: npt.NDArray[Any] = function(array.reshape(height // side, side, width // side, side), axis=(1, 3))
    return reduced


def label_components(mask: Mask) -> Labels:
    """Label 8-connected components with positive numbers, not consecutive; the background is 0.

    Each cell starts with a label of its own. Until nothing changes, it takes the largest label around it, and then the
    label of the cell that had that label at first (pointer jumping).
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        largest = np.pad(labels, 1)
        largest = np.maximum(np.maximum(largest[:-2], largest[1:-1]), largest[2:])
        largest = np.maximum(np.maximum(largest[:, :-2], largest[:, 1:-1]), largest[:, 2:]) * mask
        largest = np.append(0, largest)[largest]
        if (largest == labels).all():
            return labels
        labels = largest


def remove_small(labels: Labels, areas: npt.NDArray[Any], min_fraction: float) -> Labels:
    """Remove the components whose area, summed over `areas`, is below this fraction of the largest one's."""
    totals = np.bincount(labels.ravel(), areas.ravel())
    totals[0] = 0
    return np.where(totals[labels] >= min_fraction * totals.max(), labels, 0)


def remove_frame(labels: Labels) -> Labels:
    """Remove the component that runs along all four sides, unless there is no other."""
    sides = labels[0], labels[-1], labels[:, 0], labels[:, -1]
    frame = np.bincount(sides[0]).argmax()
    others = np.where(labels == frame, 0, labels)
    is_frame = all((side == frame).mean() > MIN_FRAME_COVERAGE for side in sides) and others.any()
    return others if is_frame else labels


def dilate(mask: Mask, radius: int) -> Mask:
    """Dilate a mask with a square of side 2 * radius + 1."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0


def scale_to_box(ink: Gray) -> Image.Image:
    """Scale a digit to the box, with its strokes dilated or eroded to the allowed width.

    Raises RequestError if the digit has no strokes.
    """
    pixel = max(ink.shape) / DIGIT_BOX_SIDE  # side of the box's pixels, in those of `ink`
    width = stroke_width(ink > 255 * INK_THRESHOLD)
    picture = Image.fromarray(ink)
    radius = round((np.clip(width, MIN_STROKE_PIXELS * pixel, MAX_STROKE_PIXELS * pixel) - width) / 2)
    if radius:
        kernel = ImageFilter.MaxFilter if radius > 0 else ImageFilter.MinFilter
        picture = ImageOps.expand(picture, abs(radius)).filter(kernel(2 * abs(radius) + 1))
        picture = picture.crop(picture.getbbox())
    if width > MAX_STROKE_WIDTH * max(ink.shape) or not picture.getbbox():
        raise RequestError("picture: expected a digit, got a filled shape without strokes", 422)
    factor = DIGIT_BOX_SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def stroke_width(mask: Mask) -> float:
    """Return the mean width of strokes in pixels: area divided by half the perimeter.

    The perimeter follows from Crofton's formula: averaged over directions, a line has pi / 4 pixels of length for each
    change between background and ink, counted along rows and columns.
    """
    mask = np.pad(mask, 1)
    perimeter = np.pi / 4 * sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in (0, 1))
    return float(2 * mask.sum() / perimeter)


def center_by_mass(digit: Image.Image) -> Gray:
    """Place a digit on a black image, uint8 [28, 28], with its center of mass at the center, to whole pixels."""
    ink = np.asarray(digit, np.float64)
    image = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    position = []
    for axis, size in enumerate(ink.shape):
        mass = ink.sum(axis=1 - axis)
        center = (mass @ np.arange(size)) / mass.sum()
        start = min(max(round(IMAGE_SIDE / 2 - center), 0), IMAGE_SIDE - size)
        position.append(slice(start, start + size))
    image[tuple(position)] = ink
    return image
