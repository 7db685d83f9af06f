"""Pictures of letters and shapes that are no digits, dark on light."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SIDE = 200  # of a picture, in pixels
LETTERS = "ACEFHKMNPRTUVWXYacdefhjkmnprtuvwxy"  # without those that resemble a digit, such as B and 8
FONTS = [  # stages/outliers.py has others: no network was trained with these
    *(cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX),
    *(cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX),
]
TURN = np.linspace(0, 2 * np.pi, 60)
CIRCLE = np.c_[np.sin(TURN), np.cos(TURN)]

Stroke = Sequence[tuple[float, float]] | NDArray[np.float64]  # points x and y, from about -1 to 1; y points down
SHAPES: dict[str, list[Stroke]] = {
    "arrow": [[(-1, 0), (1, 0)], [(0.4, -0.5), (1, 0), (0.4, 0.5)]],
    "bolt": [[(0.3, -1), (-0.5, 0.1), (0.2, 0.1), (-0.3, 1)]],
    "check": [[(-1, 0), (-0.3, 0.8), (1, -1)]],
    "circle with a cross": [CIRCLE, [(-1, 0), (1, 0)], [(0, -1), (0, 1)]],
    "diamond": [[(0, -1), (0.8, 0), (0, 1), (-0.8, 0), (0, -1)]],
    "heart": [np.c_[np.sin(TURN) ** 3, -0.8 * np.cos(TURN) + 0.3 * np.cos(2 * TURN) + 0.1 * np.cos(3 * TURN)]],
    "house": [[(-0.8, 1), (-0.8, -0.2), (0, -1), (0.8, -0.2), (0.8, 1), (-0.8, 1)]],
    "smiley": [
        CIRCLE,
        np.c_[0.5 * np.sin(TURN / 2 - np.pi / 2), 0.1 + 0.4 * np.cos(TURN / 2 - np.pi / 2)],
        *([(x, -0.35), (x, -0.25)] for x in (-0.35, 0.35)),
    ],
    "spiral": [0.15 * np.c_[TURN * np.cos(2.5 * TURN), TURN * np.sin(2.5 * TURN)]],
    "square": [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9)]],
    "star": [np.c_[np.sin(np.arange(6) * 4 * np.pi / 5), -np.cos(np.arange(6) * 4 * np.pi / 5)]],
    "triangle": [[(0, -1), (1, 0.8), (-1, 0.8), (0, -1)]],
    "wave": [np.c_[TURN / np.pi - 1, 0.3 * np.sin(2 * TURN)]],
}


def draw_letter(random: Generator) -> NDArray[np.uint8]:
    """Draw a letter in a random font, upright or italic."""
    font = int(random.choice(FONTS)) | int(random.choice([0, cv2.FONT_ITALIC]))
    picture = np.full((SIDE, SIDE), 255, np.uint8)
    letter, width = str(random.choice(list(LETTERS))), int(random.integers(3, 10))
    return cv2.putText(picture, letter, (SIDE // 4, 3 * SIDE // 4), font, 4, 0, width, cv2.LINE_AA)  # type: ignore[return-value]


def draw_shape(random: Generator) -> NDArray[np.uint8]:
    """Draw a shape with an unsteady hand, slightly turned."""
    picture, width = np.full((SIDE, SIDE), 255, np.uint8), int(random.integers(4, 12))
    angle = random.uniform(-0.2, 0.2)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * random.uniform(40, 75, 2)
    for stroke in SHAPES[str(random.choice(list(SHAPES)))]:
        points = np.asarray(stroke) @ matrix + random.normal(0, 0.8, (len(stroke), 2)) + SIDE / 2
        cv2.polylines(picture, [(points * 16).astype(np.int32)], False, 0, width, cv2.LINE_AA, 4)
    return picture
