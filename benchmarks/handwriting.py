"""Draw numbers of MNIST digits as people write them: pictures of known text, each condition with its own difficulty."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Ink = NDArray[Any]  # float32 [height, width], from 0 (paper) to 1 (ink); OpenCV's type hints do not tell dtypes
Picture = NDArray[Any]  # uint8 [height, width], gray

DIGIT_HEIGHT = 72  # pixels; MNIST's digits have 20
MARGIN = 60  # pixels around the lines


@dataclass
class Writer:
    """Random choices, and the digits to write with: images, uint8 [n, 28, 28], and their labels, uint8 [n]."""

    random: np.random.Generator
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    heights: tuple[float, float] = (0.9, 1.1)  # of digits, as fractions of DIGIT_HEIGHT
    gaps: tuple[float, float] = (0.12, 0.5)  # between digits, as fractions of DIGIT_HEIGHT
    jitter: float = 0.06  # of the baseline, as a fraction of DIGIT_HEIGHT
    text: list[str] = field(default_factory=list)  # of the lines that were written

    def digit(self) -> tuple[str, Ink]:
        """Return a random digit's label and its ink, cropped and scaled."""
        index = self.random.integers(len(self.labels))
        image = self.images[index]
        left, top, width, height = cv2.boundingRect(image)
        # A 1 that lies down would be as tall as the others if the height alone decided.
        scale = self.random.uniform(*self.heights) * DIGIT_HEIGHT / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        crop = image[top : top + height, left : left + width].astype(np.float32) / 255
        return str(self.labels[index]), cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)

    def line(self, length: int, touching: bool = False) -> Ink:
        """Write a number of some digits, apart or so that neighbors touch."""
        line = np.zeros((2 * DIGIT_HEIGHT, (length + 1) * 2 * DIGIT_HEIGHT), np.float32)
        text, right = "", 0
        for _ in range(length):
            label, ink = self.digit()
            height, width = ink.shape
            top = round(1.5 * DIGIT_HEIGHT + self.random.normal(0, self.jitter * DIGIT_HEIGHT)) - height
            left = right + round(self.random.uniform(*self.gaps) * DIGIT_HEIGHT)
            if touching and text:
                left = touching_position(line[top : top + height] > 0.5, ink > 0.5, right)
            area = line[top : top + height, left : left + width]
            np.maximum(area, ink, out=area)
            text, right = text + label, left + width
        self.text.append(text)
        return line[:, :right]


def touching_position(line: NDArray[np.bool_], digit: NDArray[np.bool_], right: int) -> int:
    """Return the column at which a digit, moved left from `right`, touches the ink of a line."""
    left = right
    while left > 0 and not (line[:, left : left + digit.shape[1]] & digit).any():
        left -= 1
    return max(left - 1, 0)  # an overlap of two pixels


def page(lines: list[Ink], spacing: float = 0.0) -> Ink:
    """Place lines below each other, `spacing` digit heights apart, with a margin around them."""
    gap = round(spacing * DIGIT_HEIGHT)
    width = max(line.shape[1] for line in lines)
    rows = [np.pad(line, ((0, gap), (0, width - line.shape[1]))) for line in lines]
    return np.pad(np.concatenate(rows), MARGIN)


def rotate(ink: Ink, degrees: float) -> Ink:
    """Rotate about the center; the ink stays inside."""
    height, width = ink.shape
    pad = round(abs(np.sin(np.radians(degrees))) * max(height, width) / 2)
    ink = np.pad(ink, pad)
    center = ink.shape[1] / 2, ink.shape[0] / 2
    return cv2.warpAffine(ink, cv2.getRotationMatrix2D(center, degrees, 1), ink.shape[::-1])


def photograph(ink: Ink, writer: Writer, noise: float = 2.0, paper: Ink | float = 1.0) -> Picture:
    """Return the gray picture of ink on paper, whose brightness is a factor for each pixel, with noise."""
    random = writer.random
    light, dark = random.uniform(170, 250), random.uniform(10, 70)
    gray = (light - ink * (light - dark)) * paper
    return (gray + random.normal(0, noise, ink.shape)).clip(0, 255).astype(np.uint8)


def plain(writer: Writer, length: int) -> Picture:
    return photograph(page([writer.line(length)]), writer)


def close(writer: Writer, length: int) -> Picture:
    writer.gaps = (0.04, 0.12)
    return plain(writer, length)


def sizes(writer: Writer, length: int) -> Picture:
    writer.heights = (0.65, 1.35)
    return plain(writer, length)


def sloping(writer: Writer, length: int) -> Picture:
    return photograph(rotate(page([writer.line(length)]), writer.random.uniform(-15, 15)), writer)


def two_lines(writer: Writer, length: int) -> Picture:
    return photograph(page([writer.line(length), writer.line(int(writer.random.integers(1, 11)))]), writer)


def ruled(writer: Writer, length: int) -> Picture:
    ink = page([writer.line(length)])
    baseline, distance = MARGIN + 1.5 * DIGIT_HEIGHT + writer.random.uniform(-8, 8), 1.4 * DIGIT_HEIGHT
    for number in range(-3, 4):
        row, slope = round(baseline + number * distance), round(writer.random.uniform(-4, 4))
        line = cv2.line(np.zeros_like(ink), (0, row - slope), (ink.shape[1], row + slope), 0.5, 2, cv2.LINE_AA)
        ink = np.maximum(ink, line)
    return photograph(ink, writer)


def squared(writer: Writer, length: int) -> Picture:
    """Draw squared paper, whose lines cross the digits."""
    ink = page([writer.line(length)])
    side = round(writer.random.uniform(0.4, 0.9) * DIGIT_HEIGHT)
    for row in range(side // 2, ink.shape[0], side):
        ink[row : row + 2] = np.maximum(ink[row : row + 2], 0.4)
    for column in range(side // 2, ink.shape[1], side):
        ink[:, column : column + 2] = np.maximum(ink[:, column : column + 2], 0.4)
    return photograph(ink, writer)


def cells(writer: Writer, length: int) -> Picture:
    """Draw a ledger's cell around the number, which its digits stay clear of."""
    ink = page([writer.line(length)])
    height, width = ink.shape
    corners = (MARGIN // 2, MARGIN // 2), (width - MARGIN // 2, height - MARGIN // 2)
    return photograph(cv2.rectangle(ink, *corners, 0.8, 3, cv2.LINE_AA), writer)


def uneven_light(writer: Writer, length: int) -> Picture:
    """Draw vignetting, light from one side and the edge of a shadow."""
    ink = page([writer.line(length)])
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in ink.shape)
    vignette = 1 - 0.25 * (x**2 + (y**2)[:, None])
    side = 1 + writer.random.uniform(-0.3, 0.3) * x
    shadow = 1 - 0.35 / (1 + np.exp((x - writer.random.uniform(-0.5, 0.5)) * 25))
    return photograph(ink, writer, paper=vignette * side * shadow)


def desk(writer: Writer, length: int) -> Picture:
    """Draw a sheet that lies on a darker desk, slightly rotated."""
    ink = page([writer.line(length)])
    margin, brightness = round(writer.random.uniform(0.2, 1.2) * DIGIT_HEIGHT), writer.random.uniform(0.2, 0.6)
    sheet = np.pad(np.ones_like(ink), margin)
    angle = writer.random.uniform(-5, 5)
    sheet, ink = rotate(sheet, angle), rotate(np.pad(ink, margin), angle)
    return photograph(ink, writer, paper=brightness + (1 - brightness) * sheet)


def noisy(writer: Writer, length: int) -> Picture:
    """Draw with the noise of a webcam in poor light, compressed as JPEG."""
    picture = photograph(cv2.GaussianBlur(page([writer.line(length)]), (0, 0), 1.2), writer, noise=12)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


def touching_pair(writer: Writer, length: int) -> Picture:
    return photograph(page([writer.line(2, touching=True)]), writer)


CONDITIONS: dict[str, Callable[[Writer, int], Picture]] = {
    "apart": plain,
    "close": close,
    "different sizes": sizes,
    "sloping": sloping,
    "two lines": two_lines,
    "uneven light": uneven_light,
    "noise": noisy,
    "ruled lines": ruled,
    "squared paper": squared,
    "cell": cells,
    "sheet on a desk": desk,
    "touching pairs": touching_pair,
}
