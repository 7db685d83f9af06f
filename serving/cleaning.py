"""Remove frames, ruled lines and dirt from ink, and rotate it until lines of text are level."""

import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from serving.errors import RequestError
from serving.ink import Ink, Mask, shrink, stroke_width
from serving.limits import MAX_COMPONENTS, MAX_PARTS

Integers = npt.NDArray[Any]  # int32

MIN_FRAMED_HEIGHT = 0.25  # fraction of the frame's height; a smaller component inside another does not make it a frame
HOUGH_SIDE = 512  # pixels along the longer side, on which ruled lines are searched
MIN_RULE_EXTENT = 0.45  # fraction of the picture's width; shorter lines don't show how it is rotated
MIN_RULE_LENGTH = 1.5  # times the height of the text; shorter lines are strokes
MIN_RULE_PART = 0.25  # fraction of the picture's width; parts of a ruled line between strokes that cross it
MAX_RULE_GAP = 0.004  # fraction of the picture's width, on either side; gaps in thin lines
RULE_SLOPE = 0.02  # of ruled lines after rotation: they are not quite straight
MAX_RULE_DEGREES, MAX_TEXT_DEGREES = 20, 45
MIN_RULE_DEGREES, MIN_TEXT_DEGREES = 0.3, 9  # smaller rotations are left: digits slope by themselves
MIN_SPECK = 0.12  # fraction of the text's height; smaller components are dirt
MIN_STROKE = 0.4  # fraction of the text's mean stroke width; thinner components are pieces of ruled lines
MAX_HEIGHT = 1.8  # times the text's height; taller components are no digits
MAX_OBJECT_STROKE = 0.4  # fraction of the longer side, or of the shorter one of strips; wider strokes are objects
MIN_STRIP_ASPECT = 4  # width / height of solid strips at the picture's border


@dataclass(frozen=True)
class Components:
    """The 8-connected components of a mask."""

    labels: Integers  # [height, width]: number of the component, 0 outside
    boxes: Integers  # [n, 4]: left, top, width and height of component 1, 2, …
    areas: Integers  # [n], pixels
    centers: npt.NDArray[Any]  # float64 [n, 2]: x, y

    @property
    def heights(self) -> Integers:
        return self.boxes[:, 3]

    def text_height(self) -> float:
        """Return the median height, weighted by areas."""
        order = self.heights.argsort()
        areas = self.areas[order].cumsum()
        return float(self.heights[order[np.searchsorted(areas, areas[-1] / 2)]])

    def stroke_widths(self) -> npt.NDArray[Any]:
        """Return each component's mean stroke width in pixels, float64 [n]."""
        distance = cv2.distanceTransform((self.labels > 0).astype(np.uint8), cv2.DIST_L2, 3)
        return 4 * np.bincount(self.labels.ravel(), distance.ravel())[1:] / self.areas

    def mask(self, keep: npt.NDArray[np.bool_]) -> Mask:
        """Return a mask of the components for which `keep`, [n], is true."""
        return np.append(False, keep)[self.labels].astype(np.uint8)


def find_components(mask: Mask, maximum: int = MAX_COMPONENTS) -> Components:
    """Label the components of a mask. Raises RequestError if there are none, or more than `maximum`."""
    count, labels, stats, centers = cv2.connectedComponentsWithStats(mask)
    if count == 1:  # the background
        raise RequestError("picture: expected digits, got an empty picture", 422)
    if count - 1 > maximum:
        raise RequestError(f"picture: expected at most {maximum:,} pieces of ink, got {count - 1:,}", 422)
    return Components(labels, stats[1:, :4], stats[1:, cv2.CC_STAT_AREA], centers[1:])


def clean(ink: Ink) -> Ink:
    """Remove what is no digit from the mask, and rotate until ruled lines, or else lines of text, are level.

    Raises RequestError if there are too many components.
    """
    mask = remove_objects(remove_frames(ink.mask))
    angle = ruled_angle(mask)
    if angle is not None:
        ink = rotate(replace(ink, mask=mask), angle)
        mask = remove_ruled_lines(ink.mask)
    ink = replace(ink, mask=remove_specks(mask))
    return rotate(ink, text_angle(ink.mask)) if angle is None else ink


def remove_frames(mask: Mask) -> Mask:
    """Remove components with others inside, such as borders of cells and the edge of a sheet."""
    components = find_components(mask)
    contours, (hierarchy,) = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    keep = np.ones(len(components.areas), bool)
    for contour, (_, _, _, hole) in zip(contours, hierarchy):
        frame = hierarchy[hole][3] if hole >= 0 else -1
        if frame >= 0 and cv2.boundingRect(contour)[3] > MIN_FRAMED_HEIGHT * cv2.boundingRect(contours[frame])[3]:
            x, y = contours[frame][0, 0]
            keep[components.labels[y, x] - 1] = False
    return components.mask(keep)


def remove_objects(mask: Mask) -> Mask:
    """Remove shapes at the picture's border that have no strokes, unless nothing is left."""
    components = find_components(mask)
    left, top, width, height = components.boxes.T
    borders = np.sum([left == 0, top == 0, left + width == mask.shape[1], top + height == mask.shape[0]], axis=0)
    strokes = components.stroke_widths()
    is_disc = strokes > MAX_OBJECT_STROKE * np.maximum(width, height)
    is_solid = strokes > MAX_OBJECT_STROKE * np.minimum(width, height)
    is_strip = is_solid & ((borders == 3) | (width > MIN_STRIP_ASPECT * height))
    keep = ~((borders > 0) & (is_disc | is_strip))
    return components.mask(keep) if keep.any() else mask


def ruled_angle(mask: Mask) -> float | None:
    """Return the angle in degrees of the longest straight, almost level line (Hough transform), or None."""
    small = shrink(255 * mask, HOUGH_SIDE)
    width = small.shape[1]
    strokes = (small > 60).astype(np.uint8)
    lines = cv2.HoughLinesP(strokes, 1, np.pi / 720, width // 4, None, MIN_RULE_EXTENT * width, 3)
    if lines is None:
        return None
    x1, y1, x2, y2 = max(lines.reshape(-1, 4).tolist(), key=lambda line: math.dist(line[:2], line[2:]))
    angle = math.degrees(math.atan2(y2 - y1, x2 - x1))
    length = math.dist((x1, y1), (x2, y2)) * mask.shape[1] / width
    is_rule = length > MIN_RULE_LENGTH * find_components(mask).text_height() and abs(angle) < MAX_RULE_DEGREES
    return angle if is_rule else None


def text_angle(mask: Mask) -> float:
    """Return the angle in degrees at which the components lie on the fewest lines, or 0 if it is small."""
    components = find_components(mask, MAX_PARTS)
    tall = components.heights > 0.4 * components.heights.max()
    if tall.sum() < 3:
        return 0.0
    x, y = components.centers[tall].T
    angles = np.arange(-MAX_TEXT_DEGREES, MAX_TEXT_DEGREES + 1)
    rows = np.outer(np.cos(np.radians(angles)), y) - np.outer(np.sin(np.radians(angles)), x)
    on_one_line = np.abs(rows[:, :, None] - rows[:, None]) < 0.4 * np.median(components.heights[tall])
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
    return Ink(gray, mask, ink.noise, matrix)


def remove_ruled_lines(mask: Mask) -> Mask:
    """Remove ruled lines by an opening with a long, level kernel, but not the strokes that cross them."""
    length = round(MIN_RULE_PART * mask.shape[1])
    tolerance = np.ones((2 * math.ceil(RULE_SLOPE * length / 2) + 1, 1), np.uint8)
    gap = np.ones((1, 2 * math.ceil(MAX_RULE_GAP * mask.shape[1]) + 1), np.uint8)
    lines = cv2.morphologyEx(cv2.dilate(mask, tolerance), cv2.MORPH_CLOSE, gap)
    lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((1, length), np.uint8)) & mask
    if not lines.any():
        return mask
    rest = mask - lines
    across = np.ones((2 * round(2 * stroke_width(lines)) + 3, 1), np.uint8)
    rest |= cv2.morphologyEx(rest, cv2.MORPH_CLOSE, across) & mask  # a stroke that crosses continues above and below
    longest = find_components(lines).boxes[:, 2].max()
    heights = [find_components(each).text_height() for each in (mask, rest) if each.any()]
    return rest if rest.any() and longest > MIN_RULE_LENGTH * max(heights) else mask


def remove_specks(mask: Mask) -> Mask:
    """Remove components that are much smaller, taller or thinner than the text."""
    components = find_components(mask)
    text, longer, strokes = components.text_height(), components.boxes[:, 2:].max(axis=1), components.stroke_widths()
    is_text = (longer >= MIN_SPECK * text) & (components.heights <= MAX_HEIGHT * text)
    thinnest = MIN_STROKE * np.average(strokes[is_text], weights=components.areas[is_text])
    return components.mask(is_text & (strokes >= thinnest))
