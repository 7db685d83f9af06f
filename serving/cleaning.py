"""Remove frames, objects and dirt from ink, and rotate it until lines of text are level."""

import math
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from serving.components import Components, find_components
from serving.ink import Ink, Mask, shrink, stroke_width
from serving.limits import MAX_PARTS
from serving.ruled_lines import erase_level_lines, find_level_lines, remove_ruled_lines

Flags = npt.NDArray[np.bool_]

MIN_FRAMED_HEIGHT = 0.25  # fraction of the frame's height; a smaller component inside another does not make it a frame
MIN_BORDER_EXTENT = 0.8  # fraction of a frame's width or height; shorter lines may be strokes
MIN_HOLE_HEIGHT = 0.5  # fraction of a cell's height; smaller holes do not show a cell
MAX_BORDER_STROKE = 0.15  # fraction of a frame's shorter side; wider strokes are digits
MAX_FRAMED_EXTENT = 0.9  # fraction of a frame's width or height; larger strokes are its border
HOUGH_SIDE = 512  # pixels along the longer side, on which ruled lines are searched
MIN_RULE_EXTENT = 0.45  # fraction of the picture's width; shorter lines don't show how it is rotated
MAX_RULE_DEGREES, MAX_TEXT_DEGREES = 20, 45
MIN_RULE_DEGREES, MIN_TEXT_DEGREES = 0.3, 9  # smaller rotations are left: digits slope by themselves
MAX_NEIGHBOR_OFFSET = 0.25  # fraction of the text's height; digits next to each other on a level line
MIN_LEVEL_NEIGHBORS = 0.8  # fraction of the digits; if as many have such a neighbor, lines are level
MIN_SPECK = 0.12  # fraction of the text's height; smaller components are dirt
MIN_STROKE = 0.4  # fraction of the text's mean stroke width; thinner components are pieces of ruled lines
MAX_HEIGHT = 1.8  # times the text's height; taller components are no digits
MIN_OBJECT_STROKE = 0.01  # fraction of the picture's longer side; thinner strokes are text
MIN_OBJECT_RATIO = 2.5  # of an object's stroke width to that of the text inside the picture
MIN_TEXT_SIDE = 0.025  # fraction of the picture's longer side; smaller components may be dirt
MAX_OBJECT_STROKE = 0.4  # fraction of the longer side, or of the shorter one of strips; wider strokes are objects
MIN_STRIP_ASPECT = 4  # width / height of solid strips at the picture's border


def clean(ink: Ink) -> Ink:
    """Remove what is no digit from the mask, and rotate until ruled lines, or else lines of text, are level.

    Raises RequestError if there are too many components.
    """
    ink = replace(ink, mask=remove_frames(remove_objects(ink.mask)))
    angle = longest_line_angle(ink.mask)
    if angle is not None:
        level = rotate(ink, angle)
        mask = remove_ruled_lines(level.mask)
        if mask is not level.mask:
            return replace(level, mask=remove_specks(mask))
    ink = replace(ink, mask=remove_specks(ink.mask))
    return rotate(ink, text_angle(ink.mask))


def remove_frames(mask: Mask) -> Mask:
    """Remove components with others inside, such as borders of cells and the edge of a sheet.

    Digits that touch the border of a cell are kept.
    """
    components = find_components(mask)
    is_frame, is_hollow = find_frames(mask, components)
    rest = components.mask(~is_frame)
    for index in np.flatnonzero(is_frame | is_hollow).tolist():
        area, cell = components.crop(index)
        digits = erase_border(cell)
        if digits.any():
            rest[area] = rest[area] & ~cell | digits
    return rest


def find_frames(mask: Mask, components: Components) -> tuple[Flags, Flags]:
    """Return which components have others inside, bool [n], and which have a large hole, bool [n]."""
    contours, (hierarchy,) = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    numbers = [components.labels[y, x] - 1 for ((x, y),), *_ in contours]  # of the component, for its holes, too
    is_frame, is_hollow = np.zeros((2, len(components.areas)), bool)
    for inner, outer in enumerate(hierarchy[:, 3]):
        if outer >= 0:
            height = cv2.boundingRect(contours[inner])[3] / components.heights[numbers[outer]]
            if numbers[inner] == numbers[outer]:  # a hole
                is_hollow[numbers[outer]] |= height > MIN_HOLE_HEIGHT
            else:
                is_frame[numbers[outer]] |= height > MIN_FRAMED_HEIGHT
    return is_frame, is_hollow


def erase_border(mask: Mask) -> Mask:
    """Remove the border from a crop of a cell's border and the digits that touch it; empty if there is no border."""
    if stroke_width(np.pad(mask, 1)) >= MAX_BORDER_STROKE * min(mask.shape):
        return np.zeros_like(mask)
    for _ in range(2):
        lines = find_level_lines(mask, MIN_BORDER_EXTENT)
        if not lines.any() or len(find_components(lines).areas) < 2:
            return np.zeros_like(mask)
        mask = erase_level_lines(mask, lines).T
    if not mask.any():
        return mask
    strokes = find_components(mask)
    extents = strokes.boxes[:, 2:] / mask.shape[::-1]
    return strokes.mask((extents[:, 1] > MIN_FRAMED_HEIGHT) & (extents.max(axis=1) < MAX_FRAMED_EXTENT))


def remove_objects(mask: Mask) -> Mask:
    """Remove shapes at the picture's border that are wider than strokes, such as a desk, unless nothing is left."""
    components = find_components(mask)
    left, top, width, height = components.boxes.T
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    borders = np.sum([left == 0, top == 0, left + width == mask.shape[1], top + height == mask.shape[0]], axis=0)
    strokes = components.stroke_widths()
    is_disc = strokes > MAX_OBJECT_STROKE * longer
    is_solid = strokes > MAX_OBJECT_STROKE * shorter
    is_strip = is_solid & ((borders == 3) | (width > MIN_STRIP_ASPECT * height))
    is_inside = (borders == 0) & (longer > MIN_TEXT_SIDE * max(mask.shape))
    text = max(MIN_OBJECT_STROKE * max(mask.shape), np.median(strokes[is_inside])) if is_inside.sum() > 1 else np.inf
    is_object = is_disc | is_strip | (strokes > MIN_OBJECT_RATIO * text) | (is_solid & (borders > 1) & (strokes > text))
    keep = ~((borders > 0) & is_object)
    return components.mask(keep) if keep.any() else mask


def longest_line_angle(mask: Mask) -> float | None:
    """Return the angle in degrees of the longest straight, almost level line (Hough transform), or None."""
    small = shrink(255 * mask, HOUGH_SIDE)
    width = small.shape[1]
    strokes = (small > 60).astype(np.uint8)
    lines = cv2.HoughLinesP(strokes, 1, np.pi / 720, width // 4, None, MIN_RULE_EXTENT * width, 3)
    if lines is None:
        return None
    lines = lines.reshape(-1, 4)
    x, y = (lines[:, 2:] - lines[:, :2]).T  # HoughLinesP returns them from left to right
    angles = np.degrees(np.arctan2(y, x))
    lengths = np.where(np.abs(angles) < MAX_RULE_DEGREES, np.hypot(x, y), 0)
    return float(angles[lengths.argmax()]) if lengths.any() else None


def text_angle(mask: Mask) -> float:
    """Return the angle in degrees at which the components lie on the fewest lines, or 0 if it is small."""
    components = find_components(mask, MAX_PARTS)
    tall = components.heights > 0.4 * components.heights.max()
    if tall.sum() < 3:
        return 0.0
    x, y = components.centers[tall].T
    height = np.median(components.heights[tall])
    distances = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y)) + np.diag(np.full(len(x), np.inf))
    offsets = np.abs(y[distances.argmin(axis=1)] - y)
    if np.mean(offsets < MAX_NEIGHBOR_OFFSET * height) > MIN_LEVEL_NEIGHBORS:
        return 0.0
    angles = np.arange(-MAX_TEXT_DEGREES, MAX_TEXT_DEGREES + 1)
    rows = np.outer(np.cos(np.radians(angles)), y) - np.outer(np.sin(np.radians(angles)), x)
    on_one_line = np.abs(rows[:, :, None] - rows[:, None]) < 0.4 * height
    angle = angles[(on_one_line.sum(axis=(1, 2)) - 0.01 * np.abs(angles)).argmax()]
    return float(angle) if abs(angle) >= MIN_TEXT_DEGREES else 0.0


def rotate(ink: Ink, degrees: float) -> Ink:
    """Rotate counterclockwise, if it is by more than MIN_RULE_DEGREES; the size grows."""
    if abs(degrees) < MIN_RULE_DEGREES:
        return ink
    height, width = ink.mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    cos, sin = abs(matrix[0, :2])
    size = math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    gray, mask = (cv2.warpAffine(pixels, matrix, size) for pixels in (ink.gray, ink.mask))
    transform = matrix @ np.vstack([ink.transform, (0, 0, 1)])
    return replace(ink, gray=gray, mask=mask, transform=transform)


def remove_specks(mask: Mask) -> Mask:
    """Remove components that are much smaller, taller or thinner than the text."""
    components = find_components(mask)
    text, longer, strokes = components.text_height(), components.boxes[:, 2:].max(axis=1), components.stroke_widths()
    is_text = (longer >= MIN_SPECK * text) & (components.heights <= MAX_HEIGHT * text)
    thinnest = MIN_STROKE * np.average(strokes[is_text], weights=components.areas[is_text])
    return components.mask(is_text & (strokes >= thinnest))
