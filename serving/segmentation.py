"""Divide ink into lines of text and pieces of digits: connected components, which are cut where digits may touch."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from serving.components import Components, Integers, find_components
from serving.errors import RequestError
from serving.ink import Mask
from serving.limits import MAX_PARTS

MAX_PART_HEIGHT = 0.45  # fraction of the text's height; smaller components may be parts of digits, dots or minus signs
MIN_DIGIT_HEIGHT = 0.3  # fraction of the text's height; smaller components are no digits of another line
MIN_LINE_OVERLAP = 0.4  # fraction of the smaller height; components side by side overlap in a line
MAX_PART_DISTANCE = 0.35  # fraction of the text's height; small components farther from a line are dirt
MIN_CUT_WIDTH, MIN_CUT_HEIGHT = 0.5, 0.5  # fractions of the text's height; smaller components are not cut
MAX_CUT_ASPECT = 12  # width / height of a component; longer ones are lines, not touching digits
SEAM_ROWS = 40  # components are cut on a picture of as many rows
MAX_CUT_INK = 0.5  # fraction of a seam that may lie in ink
MIN_PIECE = 0.08  # fraction of a component's ink on either side of a seam
MIN_SEAM_DISTANCE = 1.5  # pixels of that picture, in the mean
MAX_SEAMS = 10  # per component
SIDESTEP = 0.15  # cost of a seam's step to the next column, in pixels of ink


@dataclass(frozen=True)
class Pieces:
    """Pieces of ink in reading order."""

    labels: Integers  # [height, width]: number of the piece at each pixel, from 1 on; 0 outside
    boxes: Integers  # [n, 4]: left, top, right and bottom
    components: Integers  # [n]: number of the component to which the piece belongs
    lines: Integers  # [n]: number of the line of text, from 0 on
    heights: npt.NDArray[np.float64]  # [n]: height of the line's digits, in pixels
    widths: Integers  # [n]: width of the component in pixels


def find_pieces(mask: Mask) -> Pieces:
    """Cut the components of a mask into pieces. Raises RequestError if there are more than MAX_PARTS."""
    components = find_components(mask, MAX_PARTS)
    labels = np.zeros_like(components.labels)
    pieces: list[tuple[tuple[int, ...], int, int, float, int]] = []
    for number, (line, height) in enumerate(group_lines(components)):
        for component in line:
            left, top, width, _ = components.boxes[component].tolist()
            area, part = components.crop(component)
            indices = cut(part, height)
            labels[area] += (len(pieces) + 1 + indices) * part
            for index in range(indices.max() + 1):
                x, y, *size = cv2.boundingRect(part * (indices == index))
                box = left + x, top + y, left + x + size[0], top + y + size[1]
                pieces.append((box, component, number, height, width))
            if len(pieces) > MAX_PARTS:
                raise RequestError(f"picture: expected at most {MAX_PARTS} pieces of ink, got more", 422)
    return Pieces(labels, *(np.array(column) for column in zip(*pieces)))


def group_lines(components: Components) -> list[tuple[list[int], float]]:
    """Return the components of each line of text from left to right, and the height of its digits."""
    left, top, width, height = components.boxes.T
    text = np.median(height[height >= MAX_PART_HEIGHT * height.max()])
    is_tall = height >= MAX_PART_HEIGHT * text
    tall = np.flatnonzero(is_tall).tolist()
    for member in np.flatnonzero(~is_tall & (height >= MIN_DIGIT_HEIGHT * text)).tolist():
        is_apart = min(distance(components, member, other) for other in tall) >= MAX_PART_DISTANCE * text
        is_tall[member] = is_apart  # a smaller digit, on a line of its own
    lines: list[list[int]] = []
    for member in [it for it in left.argsort().tolist() if is_tall[it]]:
        # A line's last two components, because the last may be only the upper or lower half of a broken digit.
        overlaps = [max(overlap(components, other, member) for other in line[-2:]) for line in lines]
        if max(overlaps, default=0) >= MIN_LINE_OVERLAP:
            lines[int(np.argmax(overlaps))].append(member)
        else:
            lines.append([member])
    heights = [float(np.median(height[line])) for line in lines]
    for member in np.flatnonzero(~is_tall).tolist():
        distances = [min(distance(components, member, other) for other in line if is_tall[other]) for line in lines]
        if min(distances) < MAX_PART_DISTANCE * text:
            lines[int(np.argmin(distances))].append(member)
    center = top + height / 2
    order = sorted(range(len(lines)), key=lambda index: center[lines[index]].mean())
    return [(sorted(lines[index], key=lambda it: left[it] + width[it] / 2), heights[index]) for index in order]


def overlap(components: Components, one: int, other: int) -> float:
    """Return the rows that two components share, as a fraction of the smaller one's height."""
    (_, top1, _, height1), (_, top2, _, height2) = components.boxes[[one, other]]
    return float((min(top1 + height1, top2 + height2) - max(top1, top2)) / min(height1, height2))


def distance(components: Components, one: int, other: int) -> float:
    """Return the distance between the boxes of two components in pixels, the larger one of both axes."""
    (left1, top1, width1, height1), (left2, top2, width2, height2) = components.boxes[[one, other]]
    return float(max(left2 - left1 - width1, left1 - left2 - width2, top2 - top1 - height1, top1 - top2 - height2, 0))


def cut(part: Mask, height: float) -> Integers:
    """Return the number of the piece at each pixel of a component, from 0 on: its seams lie between the pieces."""
    rows, columns = part.shape
    pieces = np.zeros(part.shape, np.int32)
    if columns < MIN_CUT_WIDTH * height or rows < MIN_CUT_HEIGHT * height or columns > MAX_CUT_ASPECT * rows:
        return pieces
    size = max(4, round(columns * SEAM_ROWS / rows)), SEAM_ROWS
    ink = cv2.resize(255 * part, size, interpolation=cv2.INTER_AREA) / np.float32(255)
    for seam in find_seams(ink):
        pieces += np.arange(columns) >= ((seam[np.arange(rows) * SEAM_ROWS // rows, None] + 0.5) * columns / size[0])
    pieces[part > 0] = np.unique(pieces[part > 0], return_inverse=True)[1]  # without pieces that have no ink
    return pieces * part


def find_seams(ink: npt.NDArray[np.float32]) -> list[npt.NDArray[np.intp]]:
    """Return the column in every row, [rows], of the seams from top to bottom that cross the least ink."""
    rows, columns = ink.shape
    (cost_above, above), (cost_below, below) = map(cheapest_paths, (ink[: rows // 2], ink[: rows // 2 - 1 : -1]))
    costs, paths = cost_above + cost_below, np.hstack([above, below[:, ::-1]])
    neighbors = np.pad(costs, 1, constant_values=np.inf)
    is_valley = (costs <= np.minimum(neighbors[:-2], neighbors[2:])) & (costs <= MAX_CUT_INK * rows)
    ink_before = ink.cumsum(axis=1)
    seams: list[npt.NDArray[np.intp]] = []
    for seam in paths[is_valley][costs[is_valley].argsort()]:
        left = ink_before[np.arange(rows), seam].sum() / ink.sum()
        is_new = all(np.abs(seam - other).mean() > MIN_SEAM_DISTANCE for other in seams)
        if is_new and min(left, 1 - left) > MIN_PIECE:
            seams.append(seam)
    return seams[:MAX_SEAMS]


def cheapest_paths(ink: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return the cheapest path from the first row to each column of the last: costs [columns], paths [columns, rows].

    A path steps to one of three columns of the next row; dynamic programming, as in seam carving.
    """
    columns = np.arange(ink.shape[1])
    costs, paths = ink[0], columns[:, None]
    for row in ink[1:]:
        padded = np.pad(costs, 1, constant_values=np.inf)
        options = np.stack([padded[:-2] + SIDESTEP, padded[1:-1], padded[2:] + SIDESTEP])
        best = options.argmin(axis=0)
        costs = row + options[best, columns]
        paths = np.column_stack([paths[columns + best - 1], columns])
    return costs, paths
