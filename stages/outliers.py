"""Outliers: images of no class, for which a network learns to be uncertain.

Outlier exposure follows Hendrycks et al. (2019, arXiv:1812.04606). The outliers are drawn, or made from the training
images, and normalized as MNIST's images are: scaled to a box of 20 x 20 pixels, and centered by their mass.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps
from PIL.Image import Resampling, Transform, Transpose
from torch import Tensor

from stages.dataset import Split
from stages.images import IMAGE_SHAPE
from stages.params import OutlierSources

SIDE = 64  # of a drawing, in pixels, before it is normalized
CENTER = SIDE / 2
BOX = 20  # the longer side of the normalized ink, in pixels
FONTS = [  # of Matplotlib: sans-serif, serif and monospaced
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
]
LATTICE = CENTER + np.array([(x, y) for x in (-9, 0, 9) for y in (-15, 0, 15)])  # the strokes of letters end here

Points = NDArray[np.float64]  # [n, 2], x and y in pixels
Pixels = NDArray[np.uint8]


def make_outliers(split: Split, sources: OutlierSources, count: int, seed: int) -> Tensor:
    """Return `count` different outliers, uint8 [count, 1, 28, 28], on the CPU."""
    rng = np.random.default_rng(seed)
    images, labels = split.images[:, 0].cpu().numpy(), split.labels.cpu().numpy()
    turned = images[np.isin(labels, sources.quarter_turn)]
    kinds: list[tuple[float, Callable[[Generator], Image.Image]]] = [  # with their shares
        (5 if sources.characters else 0, partial(draw_character, sources.characters)),
        (2, draw_outline),
        (3, draw_strokes),
        (1 if len(turned) else 0, partial(turn, turned)),
        (1, partial(overlay, images)),
        (3, partial(join, images)),
        (1, partial(crop_between, images)),
    ]
    shares = np.array([share for share, _ in kinds])
    chosen = rng.choice(len(kinds), count, p=shares / shares.sum())
    return torch.from_numpy(np.stack([normalize(kinds[kind][1](rng), rng) for kind in chosen])).unsqueeze(1)


def normalize(image: Image.Image, rng: Generator) -> Pixels:
    """Slant, rotate and stretch the image at random; scale its ink to the box, and center it; return uint8 [28, 28]."""
    slant, angle = rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)
    matrix = np.array([[np.cos(angle), np.sin(angle) + slant], [-np.sin(angle), np.cos(angle)]])  # result to source
    center = np.array(image.size) / 2
    affine = np.column_stack([matrix, center - matrix @ center]).ravel().tolist()
    image = image.transform(image.size, Transform.AFFINE, affine, Resampling.BILINEAR)
    box = image.getbbox() or (0, 0, *image.size)
    size = np.array([(box[2] - box[0]) * rng.uniform(0.75, 1.25), box[3] - box[1]])
    width, height = np.maximum(1, size * BOX / size.max()).round().astype(int).tolist()
    ink = np.asarray(image.resize((width, height), Resampling.BOX, box))
    rows, columns = IMAGE_SHAPE[1:]
    top = min(max(0, round((rows - 1) / 2 - center_of_mass(ink.sum(axis=1)))), rows - height)
    left = min(max(0, round((columns - 1) / 2 - center_of_mass(ink.sum(axis=0)))), columns - width)
    return np.pad(ink, ((top, rows - height - top), (left, columns - width - left)))


def center_of_mass(ink: NDArray[np.uint64]) -> float:
    """Return the mean index, weighted by ink [n]; the middle if there is none."""
    return float(np.average(np.arange(len(ink)), weights=ink if ink.any() else None))


def draw_character(characters: str, rng: Generator) -> Image.Image:
    """Draw one of the characters in a random font and weight."""
    image, font = blank_image(), load_font(str(rng.choice(FONTS)))
    text, weight = str(rng.choice(list(characters))), int(rng.integers(3))
    ImageDraw.Draw(image).text((CENTER, CENTER), text, 255, font, anchor="mm", stroke_width=weight)
    return image


def draw_outline(rng: Generator) -> Image.Image:
    """Draw a polygon of straight or bent sides, or one with strokes inside, or a circle with strokes inside."""
    image, width, radius = blank_image(), random_width(rng), rng.uniform(12, 22, 2)
    corners, noise = int(rng.choice([3, 4, 4, 4, 5, 6])), 1.3
    if is_filled := rng.random() < 0.3:
        for _ in range(rng.integers(1, 4)):
            draw_line(image, CENTER + rng.uniform(-0.5, 0.5, (rng.integers(2, 4), 2)) * radius, width)
        if rng.random() < 0.5:
            corners, noise = 24, 0.0
    start = rng.choice([0, np.pi / corners, rng.uniform(0, 2 * np.pi)])
    outline = CENTER + radius * arc(start, 2 * np.pi, corners + 1)
    outline[:-1] += rng.normal(0, noise, (corners, 2))
    outline[-1] = outline[0]
    draw_line(image, outline if is_filled else bend(outline, 3, rng), width)
    return image


def draw_strokes(rng: Generator) -> Image.Image:
    """Draw one to four strokes: random ones, or such as letters have."""
    image, width = blank_image(), random_width(rng)
    count = rng.choice([1, 2, 2, 3, 4])
    fewest = 3 if count == 1 else 2  # points: a single straight line may be a 1
    for _ in range(count):
        strokes = [
            bend(rng.uniform(12, SIDE - 12, (rng.integers(fewest, 7), 2)), 8, rng),
            bend(rng.permutation(LATTICE)[: rng.integers(fewest, 5)] + rng.normal(0, 1.3, 2), 8, rng),
            rng.uniform(24, SIDE - 24, 2) + rng.uniform(5, 18, 2) * arc(rng.uniform(0, 6.3), rng.uniform(2, 4.7), 16),
        ]
        draw_line(image, strokes[rng.choice(3, p=[0.25, 0.5, 0.25])], width)
    return image


def turn(images: Pixels, rng: Generator) -> Image.Image:
    """Turn a random image by 90 degrees to the left or to the right."""
    return random_image(images, rng).transpose(rng.choice([Transpose.ROTATE_90, Transpose.ROTATE_270]))


def overlay(images: Pixels, rng: Generator) -> Image.Image:
    """Draw two random images over each other, each turned by any angle."""
    one, other = (random_image(images, rng).rotate(rng.uniform(0, 360), Resampling.BILINEAR) for _ in range(2))
    return ImageChops.lighter(one, ImageChops.offset(other, *rng.integers(-12, 13, 2).tolist()))


def join(images: Pixels, rng: Generator) -> Image.Image:
    """Draw two random images beside each other; their ink may touch, in the middle of the drawing."""
    drawings = blank_image(120, 72), blank_image(120, 72)
    left, right = (crop_columns(random_image(images, rng)) for _ in drawings)
    middle = drawings[0].width // 2
    for drawing, image, x in zip(drawings, (left, right), (middle - left.width, middle + int(rng.integers(-8, 5)))):
        drawing.paste(image, (x, int(rng.integers(17))))
    return ImageChops.lighter(*drawings)


def crop_between(images: Pixels, rng: Generator) -> Image.Image:
    """Cut a part out of two neighbors: the end of one, and the beginning of the other."""
    neighbors, (left, right) = join(images, rng), rng.integers(10, 26, 2).tolist()
    image, middle = blank_image(*neighbors.size), neighbors.width // 2
    box = (middle - left, 0, middle + right, neighbors.height)
    image.paste(neighbors.crop(box), box)
    return image


def blank_image(width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.new("L", (width, height))


@cache
def load_font(name: str) -> ImageFont.FreeTypeFont:
    """Load a font that comes with Matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size=40)


def random_image(images: Pixels, rng: Generator) -> Image.Image:
    """Return a random image at twice its size, in black and white.

    Scaled down again, it is as sharp as a digit; otherwise a network takes blur for the mark of an outlier.
    """
    enlarged = ImageOps.scale(Image.fromarray(images[rng.integers(len(images))]), 2)
    return enlarged.point(lambda value: 255 * (value > 127))


def random_width(rng: Generator) -> int:
    """Return the width of a drawing's lines."""
    return int(rng.integers(3, 7))


def crop_columns(image: Image.Image) -> Image.Image:
    """Cut off the columns on both sides that have no ink."""
    left, _, right, _ = image.getbbox() or (0, 0, *image.size)
    return image.crop((left, 0, right, image.height))


def draw_line(image: Image.Image, points: Points, width: int) -> None:
    """Draw a line through the points, with round ends."""
    draw, radius = ImageDraw.Draw(image), width / 2
    draw.line(points.ravel().tolist(), 255, width, joint="curve")
    for x, y in points[[0, -1]].tolist():
        draw.circle((x, y), radius, 255)


def arc(start: float, angle: float, count: int) -> Points:
    """Return points on a circle of radius 1, from `start` on by `angle` in radians."""
    angles = np.linspace(start, start + angle, count)
    return np.column_stack([np.sin(angles), np.cos(angles)])


def bend(corners: Points, amount: float, rng: Generator) -> Points:
    """Replace the straight lines between the corners, in 3 of 10 cases, by quadratic Bezier curves."""
    if rng.random() < 0.7:
        return corners
    start, end = corners[:-1], corners[1:]
    control = (start + end) / 2 + rng.normal(0, amount, start.shape)
    t = np.linspace(0, 1, 8)[:, None, None]
    curves = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    return curves.swapaxes(0, 1).reshape(-1, 2)
