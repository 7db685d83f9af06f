"""Center and scale a digit like MNIST, for the models to classify.

MNIST's digits were scaled into a box of 20 x 20 pixels, with their aspect ratio kept and anti-aliasing, and then moved
so that their center of mass is at the center of 28 x 28 pixels (http://yann.lecun.org/exdb/mnist/).
"""

import math

import cv2
import numpy as np
from PIL import Image

from serving.ink import INK_THRESHOLD, Gray, Mask, stroke_width

IMAGE_SIDE = 28  # pixels
DIGIT_BOX_SIDE = 20  # pixels of the image
STROKE_CELLS = 120  # along the longer side of the digit; strokes are measured on these cells
HALO_INK = 0.15  # fraction of a stroke's ink; JPEG compression leaves weaker ink around strokes
MAX_STROKE_WIDTH = 0.45  # fraction of the digit's longer side; wider shapes have no strokes (a disc has 0.5)
MIN_STROKE_PIXELS, MAX_STROKE_PIXELS = 1.6, 4.2  # in the box; thinner strokes are dilated, thicker ones eroded


def normalize_digit(gray: Gray, mask: Mask, noise: float) -> Gray:
    """Return the ink under a mask as MNIST has it, uint8 [28, 28], light on dark; empty if it has no strokes.

    `gray` and `mask` are crops of the same size, and `noise` is the standard deviation of the paper's ink.
    """
    strongest = max(np.percentile(gray[mask > 0], 80) - 3 * noise, 1)
    cells = reduce_maximum(gray * cv2.dilate(mask, np.ones((3, 3), np.uint8)), STROKE_CELLS)
    ink = (cells - 3 * noise) / strongest  # 1 inside strokes, less at their edges
    ink = ((ink - HALO_INK) / (1 - HALO_INK)).clip(0, 1)
    return center_by_mass(scale_to_box(thicken((255 * ink).astype(np.uint8))))


def reduce_maximum(gray: Gray, cells: int) -> Gray:
    """Reduce to at most `cells` x `cells` by the maximum of square blocks, so that thin strokes are not lost."""
    side = math.ceil(max(gray.shape) / cells)
    gray = np.pad(gray, [(0, -size % side) for size in gray.shape])
    height, width = gray.shape
    reduced: Gray = gray.reshape(height // side, side, width // side, side).max(axis=(1, 3))
    return reduced


def thicken(ink: Gray) -> Gray:
    """Dilate thin strokes and erode thick ones to the allowed width; a shape without strokes becomes empty."""
    pixel = max(ink.shape) / DIGIT_BOX_SIDE  # side of the box's pixels, in those of `ink`
    width = stroke_width(np.pad((ink > 255 * INK_THRESHOLD).astype(np.uint8), 1))
    if width > MAX_STROKE_WIDTH * max(ink.shape):
        return np.zeros_like(ink)
    radius = round((np.clip(width, MIN_STROKE_PIXELS * pixel, MAX_STROKE_PIXELS * pixel) - width) / 2)
    kernel = np.ones((2 * abs(radius) + 1,) * 2, np.uint8)
    return (cv2.dilate if radius > 0 else cv2.erode)(np.pad(ink, abs(radius)), kernel)


def scale_to_box(ink: Gray) -> Gray:
    """Crop and scale so that the longer side fills the box."""
    left, top, width, height = cv2.boundingRect(ink)
    if not width:
        return ink[:1, :1]
    factor = DIGIT_BOX_SIDE / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    crop = Image.fromarray(ink[top : top + height, left : left + width])
    return np.asarray(crop.resize(size, Image.Resampling.BILINEAR))  # with anti-aliasing, unlike OpenCV's


def center_by_mass(digit: Gray) -> Gray:
    """Place a digit on a black image, uint8 [28, 28], with its center of mass at the center, to whole pixels."""
    moments = cv2.moments(digit)
    image = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    if moments["m00"]:
        centers = moments["m01"] / moments["m00"], moments["m10"] / moments["m00"]
        top, left = (
            min(max(round(IMAGE_SIDE / 2 - center), 0), IMAGE_SIDE - size) for center, size in zip(centers, digit.shape)
        )
        image[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return image
