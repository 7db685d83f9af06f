"""The ten digits as pen strokes."""

import numpy as np

Points = list[tuple[float, float]]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Points:
    """Return points on an ellipse around (x, y), between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 30))
    return list(zip(x + width * np.cos(angles), y + height * np.sin(angles)))


STROKES: dict[int, list[Points]] = {  # in the unit square, with the origin at the top left
    0: [arc(0.5, 0.5, 0.32, 0.5, -90, 270)],
    1: [[(0.35, 0.2), (0.55, 0), (0.55, 1)]],
    2: [[*arc(0.5, 0.28, 0.32, 0.28, 190, 400), (0.18, 1), (0.85, 1)]],
    3: [arc(0.45, 0.25, 0.33, 0.25, 200, 440) + arc(0.45, 0.73, 0.37, 0.27, 280, 520)],
    4: [[(0.6, 0), (0.15, 0.65), (0.9, 0.65)], [(0.68, 0.35), (0.68, 1)]],
    5: [[(0.8, 0), (0.25, 0), (0.22, 0.42), *arc(0.47, 0.68, 0.36, 0.32, 230, 500)]],
    6: [[(0.7, 0), (0.35, 0.35), *arc(0.5, 0.7, 0.32, 0.3, 190, 550)]],
    7: [[(0.15, 0), (0.85, 0), (0.4, 1)]],
    8: [arc(0.5, 0.25, 0.27, 0.25, 90, -270) + arc(0.5, 0.75, 0.33, 0.25, 270, 630)],
    9: [[*arc(0.5, 0.28, 0.3, 0.28, 0, -360), (0.8, 0.28), (0.72, 1)]],
}


def digit_strokes(digit: int, height: float, left: float, top: float) -> list[Points]:
    """Return the strokes of a digit of this height, two thirds as wide, with its top left corner at (left, top)."""
    return [[(left + x * height * 2 / 3, top + y * height) for x, y in stroke] for stroke in STROKES[digit]]
