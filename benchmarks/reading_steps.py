"""Draw what each step of reading does to a photo: the figure of docs/reading.md."""

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import handwriting
from benchmarks.handwriting import Picture, Writer
from serving import cleaning, ink, models, reading, segmentation
from serving.errors import StartError
from stages import artifacts, dataset, params
from stages.errors import UserError

FILE = Path("docs/reading.png")
SEED = 7
PIXELS = 700  # along the photo's longer side


def main() -> None:
    try:
        test = dataset.load_test_set(params.load_params().data)
        classifiers = list(models.load_models(artifacts.MODEL_REPOSITORY).values())
    except (StartError, UserError) as error:
        sys.exit(f"reading_steps: {error}")
    writer = Writer(np.random.default_rng(SEED), test.images[:, 0].numpy(), test.labels.numpy())
    photo = draw_photo(writer)
    extracted = ink.extract_ink(np.stack([photo] * 3, axis=-1), photo.shape[::-1])
    cleaned = cleaning.clean(extracted)
    pieces = segmentation.find_pieces(cleaned.mask)
    lines = reading.read_image(Image.fromarray(photo).convert("RGB"), photo.shape[::-1], classifiers)

    digits = [digit for line in lines for digit in line["digits"]]
    figure = Figure(figsize=(9, 10), layout="constrained")
    panels = figure.subplots(4, 2).ravel()
    show(panels[0], "1. The photo, upright", photo)
    show(panels[1], "2. Ink: how much darker than the paper around it", 255 - extracted.gray)
    show(panels[2], "3. Adaptive threshold", 255 * (1 - extracted.mask))
    show(panels[3], "4. Without ruled lines, level", 255 * (1 - cleaned.mask))
    show(panels[4], "5. Components, cut into pieces", color_pieces(pieces))
    show(panels[5], "7. The most probable division into digits", photo)
    for digit in digits:
        draw_box(panels[5], digit)
    half = (len(digits) + 1) // 2
    for axes, part in zip(panels[6:], (digits[:half], digits[half:])):
        show(axes, "6. The digits, centered and scaled like MNIST", np.hstack([digit["image"] for digit in part]))
    figure.savefig(FILE, dpi=100)
    Image.open(FILE).convert("RGB").quantize(64).save(FILE, optimize=True)
    print(f"{FILE}: {[line['text'] for line in lines]}, written: {writer.text}")


def show(axes: Axes, title: str, picture: Picture) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize="medium")
    axes.set_axis_off()


def draw_photo(writer: Writer) -> Picture:
    """Draw two numbers on ruled lines, one with touching digits, in uneven light, with the shadow of an object."""
    drawn = handwriting.page([writer.line(5), writer.line(2, touching=True)], spacing=0.2)
    for row in range(30, drawn.shape[0], 50):
        drawn = np.maximum(drawn, cv2.line(np.zeros_like(drawn), (0, row), (drawn.shape[1], row), 0.4, 2))
    drawn = handwriting.rotate(drawn, 5)
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in drawn.shape)
    paper = (1 - 0.2 * (x**2 + (y**2)[:, None])) * (1 - 0.35 / (1 + np.exp((x - 0.3) * 25)))
    photo = handwriting.photograph(drawn, writer, noise=4, paper=paper)
    scale = PIXELS / max(photo.shape)
    return np.asarray(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def color_pieces(pieces: segmentation.Pieces) -> Picture:
    """Return an RGB picture in which neighboring pieces differ in color."""
    colors = np.random.default_rng(0).permutation(np.linspace(0, 179, len(pieces.boxes))).astype(np.uint8)
    hues = np.stack([colors, np.full_like(colors, 200), np.full_like(colors, 200)], axis=-1)[None]
    palette = np.concatenate([[[255, 255, 255]], cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]])
    return palette[pieces.labels].astype(np.uint8)


def draw_box(axes: Axes, digit: dict[str, Any]) -> None:
    """Draw a digit's box and its label."""
    left, top, width, height = digit["box"].values()
    axes.plot([left, left + width, left + width, left, left], [top, top, top + height, top + height, top], "C0", lw=1)
    axes.text(left, top - 4, str(digit["label"] or reading.UNREAD), color="C0", weight="bold")


if __name__ == "__main__":
    main()
