"""Remove ruled lines, and the margins and columns of squared paper, but not the strokes that cross them."""

import math

import cv2
import numpy as np

from serving.components import find_components
from serving.ink import Mask, stroke_width

MIN_RULE_LENGTH = 1.5  # times the height of the text; shorter lines are strokes
MIN_RULE_PART = 0.25  # fraction of the picture's width; parts of a ruled line between strokes that cross it
MIN_MARGIN_EXTENT = 0.8  # fraction of the picture's height; shorter upright lines may be strokes
MAX_RULE_GAP = 0.004  # fraction of the picture's width, on either side; gaps in thin lines
RULE_SLOPE = 0.02  # of ruled lines after rotation: they are not quite straight


def remove_ruled_lines(mask: Mask) -> Mask:
    """Remove level lines that are longer than digits are tall, and with them margins and the columns of squared paper.

    Returns the mask itself if there are none.
    """
    level = find_level_lines(mask, MIN_RULE_PART)
    if not level.any():
        return mask
    lengths = find_components(level).boxes[:, 2]
    rest, text = erase_level_lines(mask, level), mask
    if np.sum(lengths > MIN_MARGIN_EXTENT * mask.shape[1]) > 1:  # not the strokes of a digit that fills the picture
        margins = find_margins(rest)
        rest, text = erase_level_lines(rest.T, margins.T).T, mask & ~margins
    heights = [find_components(each).text_height() for each in (text, rest) if each.any()]
    return rest if rest.any() and lengths.max() > MIN_RULE_LENGTH * max(heights) else mask


def find_margins(mask: Mask) -> Mask:
    """Return the upright lines that cross the whole picture."""
    lines = find_level_lines(mask.T, MIN_RULE_PART).T
    if not lines.any():
        return lines
    components = find_components(lines)
    return components.mask(components.heights > MIN_MARGIN_EXTENT * len(mask))


def find_level_lines(mask: Mask, extent: float) -> Mask:
    """Return the almost level lines of at least this fraction of the width: an opening with a long kernel."""
    length = round(extent * mask.shape[1])
    tolerance = np.ones((2 * math.ceil(RULE_SLOPE * length / 2) + 1, 1), np.uint8)
    gap = np.ones((1, 2 * math.ceil(MAX_RULE_GAP * mask.shape[1]) + 1), np.uint8)
    lines = cv2.morphologyEx(cv2.dilate(mask, tolerance), cv2.MORPH_CLOSE, gap)
    lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((1, length), np.uint8))
    return cv2.bitwise_and(lines, mask)


def erase_level_lines(mask: Mask, lines: Mask) -> Mask:
    """Remove lines, but not the strokes that cross them, which continue above and below."""
    rest: Mask = mask - lines
    across = np.ones((2 * round(2 * stroke_width(lines)) + 3, 1), np.uint8)
    rest |= cv2.morphologyEx(rest, cv2.MORPH_CLOSE, across) & mask
    return rest
