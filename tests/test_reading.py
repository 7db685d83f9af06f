"""Reading numbers: several digits and lines, among ruled lines, dirt and shadows."""

import contextlib
import copy
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from serving import models, reading
from serving.errors import RequestError
from serving.limits import MAX_PARTS
from stages import artifacts
from tests.conftest import PROJECT
from tests.drawing import digit_strokes
from tests.test_digits import classify, encode, paint

HEIGHT, PEN = 120, 9  # pixels, of the digits that are drawn
Ink = np.ndarray  # [height, width], from 0 to 1


def write(*lines: str, gap: float = 0.35, angle: float = 0, drops: tuple[int, ...] = ()) -> Ink:
    """Write lines of digits with this gap, in digit heights; `drops` moves digits down, by pixels."""
    width = 120 + round(max(map(len, lines)) * HEIGHT * (2 / 3 + gap))
    picture = Image.new("L", (width, 120 + 180 * len(lines)))
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        for column, digit in enumerate(line):
            drop = drops[column] if drops else 0
            left, top = 60 + column * HEIGHT * (2 / 3 + gap), 60 + 180 * row + drop
            for stroke in digit_strokes(int(digit), HEIGHT, left, top):
                pen.line(stroke, fill=255, width=PEN, joint="curve")
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True).filter(ImageFilter.GaussianBlur(0.7))
    return np.asarray(picture) / 255


def add(ink: Ink, draw) -> Ink:
    """Draw something besides the digits with an ImageDraw."""
    picture = Image.fromarray((255 * ink).astype(np.uint8))
    draw(ImageDraw.Draw(picture), *picture.size)
    return np.asarray(picture) / 255


def read(picture: np.ndarray | Image.Image, classifiers: list[models.Model]) -> list[str]:
    """Return the lines of text."""
    answer = reading.read_picture(encode(picture), classifiers, 16_000_000)
    return [line["text"] for line in answer["lines"]]


def ruled(pen, width, height):
    for row in range(10, height, 62):
        pen.line([(0, row), (width, row + 3)], fill=110, width=2)


def ledger(pen, width, height):
    pen.rectangle((20, 25, width - 21, height - 26), outline=200, width=3)


def dots_and_a_minus_sign(pen, width, height):
    pen.line([(width - 60, 115), (width - 22, 115)], fill=255, width=PEN)
    pen.ellipse((width - 100, 165, width - 90, 175), fill=255)


def dark_object(pen, width, height):
    pen.rectangle((0, 0, 40, height), fill=255)
    pen.rectangle((60, height - 12, width, height), fill=240)


def specks(pen, width, height):
    for x, y in np.random.default_rng(0).integers(0, [width, height], (60, 2)).tolist():
        pen.point([(x, y), (x + 1, y)], fill=200)


NUMBERS = {
    "a row": (lambda: write("1572"), ["1572"]),
    "all digits": (lambda: write("1234567890"), ["1234567890"]),
    "two lines": (lambda: write("1572", "43890"), ["1572", "43890"]),
    "two digits above each other": (lambda: write("2", "4"), ["2", "4"]),
    "a line that slopes up": (lambda: write("2753", angle=17), ["2753"]),
    "a line that slopes down": (lambda: write("2753", angle=-17), ["2753"]),
    "an uneven baseline": (lambda: write("27534", drops=(0, 25, -20, 15, -5)), ["27534"]),
    "ruled lines": (lambda: add(write("404"), ruled), ["404"]),
    "rotated ruled lines": (lambda: np.asarray(
        Image.fromarray((255 * add(write("8253"), ruled)).astype(np.uint8)).rotate(4, Image.Resampling.BICUBIC)
    ) / 255, ["8253"]),
    "a cell": (lambda: add(write("3047"), ledger), ["3047"]),
    "dots and a minus sign": (lambda: add(write("62"), dots_and_a_minus_sign), ["62"]),
    "dark objects at the border": (lambda: add(write("9176"), dark_object), ["9176"]),
    "specks": (lambda: add(write("9176"), specks), ["9176"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(
    "colors", [((255, 255, 255), (0, 0, 0)), ((20, 30, 20), (200, 210, 180))], ids=["dark", "light"]
)
def test_numbers_are_read(classifiers, kind, colors):
    write_ink, expected = NUMBERS[kind]
    assert read(paint(write_ink(), *colors), classifiers) == expected


def test_numbers_are_read_across_a_shadow(classifiers):
    picture = paint(write("40719"))
    x = np.linspace(-1, 1, picture.shape[1])[:, None]
    light = (1 - 0.4 / (1 + np.exp(-30 * (x + 0.1)))) * (1 - 0.2 * x)
    assert read((picture * light).clip(0, 255).astype(np.uint8), classifiers) == ["40719"]


def test_a_digit_in_two_pieces_is_one_digit(classifiers):
    ink = write("357")
    ink[60:120, 225:236] = 0  # cuts the bar of the 5 off
    assert read(paint(ink), classifiers) == ["357"]


@pytest.mark.parametrize("text", ["23", "45", "50", "74", "36"])
def test_touching_digits_are_cut(classifiers, text):
    assert read(paint(write(text, gap=-0.08)), classifiers) == [text]


@pytest.mark.parametrize("size", [(None, None), (5000, 2000)])
@pytest.mark.parametrize("angle", [0, 12])
def test_boxes_are_in_the_pixels_of_the_picture(classifiers, angle, size):
    ink = write("27", angle=angle)
    picture = Image.fromarray(paint(np.pad(ink, ((0, 0), (300, 0)))))
    scale_x, scale_y = (size[0] / picture.width, size[1] / picture.height) if size[0] else (1, 1)
    picture = picture.resize((round(picture.width * scale_x), round(picture.height * scale_y)))
    (line,) = reading.read_picture(encode(picture), classifiers, 16_000_000)["lines"]
    two, seven = (digit["box"] for digit in line["digits"])
    columns = np.flatnonzero(ink.max(axis=0) > 0.5) + 300
    margin = 6 + 25 * (angle != 0)  # the box of a rotated digit is around its rotated box
    assert two["left"] == pytest.approx(columns[0] * scale_x, abs=margin * scale_x)
    assert seven["left"] + seven["width"] == pytest.approx(columns[-1] * scale_x, abs=margin * scale_x)
    assert two["left"] + two["width"] < seven["left"] + margin * scale_x


def test_a_number_has_the_product_of_its_digits_confidences(classifiers):
    (line,) = reading.read_picture(encode(paint(write("157"))), classifiers, 1_000_000)["lines"]
    assert line["confidence"] == pytest.approx(np.prod([digit["confidence"] for digit in line["digits"]]))
    mean = np.mean([list(model["probabilities"].values()) for model in line["digits"][0]["models"].values()], axis=0)
    assert line["digits"][0]["confidence"] == pytest.approx(mean.max(), abs=1e-6)


@pytest.mark.parametrize(
    "ink",
    [np.pad(np.ones((20, 20)), 100), np.hypot(*np.mgrid[-150:150, -150:150]) < 14],
    ids=["square", "disc"],
)
def test_a_filled_shape_has_no_label(classifiers, ink):
    (line,) = reading.read_picture(encode(paint(ink)), classifiers, 1_000_000)["lines"]
    (digit,) = line["digits"]
    assert (line["text"], line["confidence"], digit["label"], digit["confidence"]) == ("?", 0, None, 0)
    assert digit["reason"] == "a filled shape without strokes"


def test_a_digit_above_the_maximum_entropy_has_no_label(classifiers):
    certain, uncertain = (copy.copy(classifiers[0]) for _ in range(2))
    certain.max_entropy, uncertain.max_entropy, uncertain.name = 3.0, -0.1, "uncertain"
    picture = encode(paint(write("7")))
    (line,) = reading.read_picture(picture, [certain, uncertain], 1_000_000)["lines"]
    assert line["text"] == line["digits"][0]["label"] == "7"
    assert [model["label"] for model in line["digits"][0]["models"].values()] == ["7", None]
    (line,) = reading.read_picture(picture, [uncertain], 1_000_000)["lines"]
    assert (line["text"], line["digits"][0]["label"]) == ("?", None)
    assert line["digits"][0]["reason"].startswith("no digit: ")


def test_the_models_state_their_maximum_entropy(classifiers):
    for model in classifiers:
        calibration = json.loads((PROJECT / artifacts.calibration(model.name.removesuffix("_int8"))).read_text())
        assert 0.1 < model.max_entropy == calibration["max_entropy"] < 2


def test_the_entropy_is_that_of_equal_probabilities_at_most():
    assert reading.entropy(np.array([0, 1, 0], np.float32)) == 0
    assert reading.entropy(np.full(10, 0.1, np.float32)) == pytest.approx(np.log(10))


def test_too_many_pieces_are_refused(classifiers):
    ink = np.zeros((900, 900))
    ink[20:-20:20, 20:-20:20] = ink[21:-20:20, 20:-20:20] = ink[22:-20:20, 20:-20:20] = 1
    with pytest.raises(
        RequestError, match=f"^picture: expected at most {MAX_PARTS} pieces of ink, got 1,849$"
    ) as raised:
        reading.read_picture(encode(paint(ink)), classifiers, 1_000_000)
    assert raised.value.status == 422


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3000, 3), (10, 4000), (4000, 20), (1, 1), (2, 2)])
@pytest.mark.parametrize("ink", [0, 0.5])
def test_a_picture_of_any_shape_is_read_or_refused(classifiers, size, ink):
    pixels = paint(np.full(size, ink))
    pixels[0, 0] = 0
    with contextlib.suppress(RequestError):
        assert reading.read_picture(encode(pixels), classifiers, 1_000_000)["lines"]


@pytest.mark.parametrize("drop", [0, 1, 3, 7])
def test_a_hairline_is_refused_or_has_a_box_in_the_picture(classifiers, drop):
    picture = Image.new("L", (300, 150), 255)
    ImageDraw.Draw(picture).line((0, 70, 299, 70 + drop), fill=0)
    with contextlib.suppress(RequestError):
        (line,) = reading.read_picture(encode(picture), classifiers, 1_000_000)["lines"]
        assert line["text"]
        for box in (digit["box"] for digit in line["digits"]):
            assert 0 <= box["left"] <= box["left"] + box["width"] <= 300


def test_a_repository_without_digit_classifiers_is_refused():
    with pytest.raises(RequestError, match="^models: expected one that classifies digits, got none$"):
        reading.read_picture(encode(paint(write("1"))), [], 1_000_000)


def test_classify_prints_a_row_for_each_line(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(paint(write("1572", "43890"))))
    result = classify(shipped, str(tmp_path / "a.png"))
    assert [row.split()[1] for row in result.stdout.decode().splitlines()] == ["text", "1572", "43890"]
    lines = json.loads(classify(shipped, "--json", "-", stdin=(tmp_path / "a.png").read_bytes()).stdout)["lines"]
    assert [line["text"] for line in lines] == ["1572", "43890"]
