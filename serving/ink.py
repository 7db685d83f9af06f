"""Separate ink from paper: even out the light and apply an adaptive threshold.

"Ink" is how much a pixel differs from the paper around it, from 0 to 255, whichever of the two is darker.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from serving.errors import RequestError

Gray = npt.NDArray[Any]  # uint8 [height, width]; OpenCV's type hints do not tell dtypes
Mask = npt.NDArray[Any]  # uint8 [height, width], 0 or 1
Color = npt.NDArray[Any]  # uint8 [height, width, 3]
Matrix = npt.NDArray[Any]  # float64 [2, 3], of an affine transform

BACKGROUND_SIDE = 256  # pixels along the longer side, on which paper and thresholds are estimated
MAX_INK_WIDTH = 0.35  # fraction of the longer side; anything wider is paper
STROKES_PER_KERNEL = 4  # strokes as wide as the mean that the closing removes side by side
NOISE_PIXELS = 100_000  # of paper, from which its noise is estimated
MIN_PAPER = 64  # of 255; on darker paper, differences are divided by this
NEIGHBORHOOD = 0.25  # fraction of the longer side; the strongest ink within it sets the threshold
MIN_CONTRAST = 24  # of 255; the picture counts as empty below
MIN_EDGE = 0.13  # fraction of the strongest ink; the picture counts as empty if nothing in it has a sharper edge
INK_THRESHOLD = 0.35  # fraction of the strongest ink nearby
MIN_STRENGTH = 0.7  # fraction of the picture's strongest ink; the strongest ink nearby counts as no weaker


@dataclass(frozen=True)
class Ink:
    """Ink with its mask, the noise of the paper, and the place in the picture."""

    gray: Gray
    mask: Mask
    noise: float  # standard deviation in gray levels
    size: tuple[int, int]  # width and height of the picture
    transform: Matrix  # from the picture's coordinates to those of the mask


def extract_ink(pixels: Color, size: tuple[int, int]) -> Ink:
    """Separate ink from lighter paper in RGB pixels, of a picture of this size. Raises RequestError if it is empty."""
    gray, strokes = flatten_light(pixels)
    paper = gray[strokes == 0]
    paper = paper[:: max(1, len(paper) // NOISE_PIXELS)]
    offset = np.median(paper)
    noise = 1.4826 * float(np.median(np.abs(paper - offset)))  # by the median absolute deviation
    gray = (gray - np.minimum(gray, offset)).astype(np.uint8)
    strength = cv2.blur(gray, (3, 3))
    strongest = float(strength.max())
    edges = cv2.morphologyEx(shrink(gray, BACKGROUND_SIDE), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    if strongest < max(MIN_CONTRAST, 6 * noise) or edges.max() < MIN_EDGE * strongest:
        raise RequestError("picture: expected digits, got an empty picture", 422)
    threshold = INK_THRESHOLD * np.maximum(local_maximum(strength), MIN_STRENGTH * strongest)
    mask = (gray > np.maximum(threshold, 4 * noise)).astype(np.uint8)
    scale = np.divide(mask.shape[::-1], size)
    return Ink(gray, mask, noise, size, np.column_stack([np.diag(scale), (0, 0)]))


def flatten_light(pixels: Color) -> tuple[Gray, Mask]:
    """Return the difference to the paper divided by the paper's color, and a mask of the strokes.

    A morphological closing estimates the paper. A first, wide one finds the strokes. The second is only a few strokes
    wide, so that it follows vignetting and shadows.
    """
    small = cv2.medianBlur(shrink(pixels, BACKGROUND_SIDE), 3)
    widest = MAX_INK_WIDTH * max(small.shape)
    _, strokes = cv2.threshold(darkness(small, close(small, widest)), 0, 1, cv2.THRESH_OTSU)
    paper = close(small, min(widest, STROKES_PER_KERNEL * stroke_width(strokes) + 4))
    paper = cv2.erode(paper, np.ones((3, 3), np.uint8))  # pixels across the edge of a sheet are no ink
    size = pixels.shape[1::-1]
    return darkness(pixels, cv2.resize(paper, size)), cv2.resize(strokes, size, interpolation=cv2.INTER_NEAREST)


def darkness(pixels: Color, paper: Color) -> Gray:
    """Return how much darker than paper each pixel is, in the channel of the strongest difference."""
    difference = cv2.divide(cv2.subtract(paper, pixels), np.maximum(paper, MIN_PAPER), scale=255)
    red, green, blue = cv2.split(difference)
    return cv2.max(cv2.max(red, green), blue)


def close(pixels: Color, side: float) -> Color:
    """Return the morphological closing with a square kernel, which leaves nothing dark that is narrower.

    Beyond the borders, an odd reflection continues the gradient of the light, within limits, so that ink stays dark.
    """
    radius = max(0, min(round(side / 2), min(pixels.shape[:2]) // 2 - 1))
    padding = (2 * radius,) * 4
    reflected = cv2.copyMakeBorder(pixels, *padding, cv2.BORDER_REFLECT_101).astype(np.float32)
    odd = 2 * cv2.copyMakeBorder(pixels, *padding, cv2.BORDER_REPLICATE).astype(np.float32) - reflected
    padded = np.clip(odd, 0.8 * reflected, 1.25 * reflected).clip(0, 255).astype(np.uint8)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((2 * radius + 1,) * 2, np.uint8))
    return closed[2 * radius : closed.shape[0] - 2 * radius, 2 * radius : closed.shape[1] - 2 * radius]


def stroke_width(mask: Mask) -> float:
    """Return the mean width of strokes in pixels: 4 times the mean distance to the edge, as in a straight stroke."""
    return 4 * float(cv2.mean(cv2.distanceTransform(mask, cv2.DIST_L2, 3), mask)[0])


def is_light_on_dark(pixels: Color) -> bool:
    """Say whether paper, which is in the majority around most pixels and at the border, is darker than ink."""
    gray = cv2.cvtColor(shrink(pixels, BACKGROUND_SIDE), cv2.COLOR_RGB2GRAY)
    kernel = neighborhood(gray)
    lightest, darkest = cv2.dilate(gray, kernel).mean(), cv2.erode(gray, kernel).mean()
    around = 2 * cv2.medianBlur(gray, len(kernel)).mean() - lightest - darkest
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]]).astype(float)
    at_border = 2 * np.median(border) - border.max() - border.min()
    return bool(around / (lightest - darkest + 1) + 0.5 * at_border / (np.ptp(gray) + 1.0) < 0)


def local_maximum(gray: Gray) -> Gray:
    """Return the strongest ink near each pixel."""
    small = shrink(gray, BACKGROUND_SIDE)
    return cv2.resize(cv2.dilate(small, neighborhood(small)), gray.shape[::-1])


def neighborhood(pixels: Gray) -> Mask:
    """Return the square kernel within which inks are compared."""
    side = 2 * round(NEIGHBORHOOD * max(pixels.shape) / 2) + 1
    return np.ones((side, side), np.uint8)


def shrink(pixels: Gray | Color, side: int) -> Gray | Color:
    """Shrink a picture to this many pixels along its longer side, if it has more."""
    scale = side / max(pixels.shape[:2])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return pixels if scale >= 1 else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
