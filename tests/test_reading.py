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


def squared(pen, width, height):
    ruled(pen, width, height)
    for column in range(14, width, 62):
        pen.line([(column, 0), (column + 3, height)], fill=110, width=2)


def margin(pen, width, height):
    ruled(pen, width, height)
    pen.line([(36, 0), (37, height)], fill=200, width=3)


def touched_cell(pen, width, height):
    pen.rectangle((20, 58, width - 21, height - 26), outline=200, width=3)


def colon(pen, width, height):
    pen.ellipse((width // 2 - 5, 95, width // 2 + 5, 105), fill=255)
    pen.ellipse((width // 2 - 5, 150, width // 2 + 5, 160), fill=255)


def corner_of_a_desk(pen, width, height):
    pen.polygon([(0, 0), (width, 0), (width, 30), (45, 40), (30, height), (0, height)], fill=230)


def desk_around_a_sheet(pen, width, height):
    pen.rectangle((0, 0, width, height), outline=230, width=40)


def smaller_number_below() -> Ink:
    above, below = write("1572"), write("438")
    below = np.asarray(Image.fromarray((255 * below).astype(np.uint8)).reduce(2)) / 255
    return np.concatenate([above, np.pad(below, ((0, 0), (0, above.shape[1] - below.shape[1])))])


def indented_lines() -> Ink:
    lines = [write(text) for text in ("15", "72", "43")]
    return np.concatenate([np.pad(line, ((0, 0), (150 * row, 300 - 150 * row))) for row, line in enumerate(lines)])


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
    "squared paper": (lambda: add(write("8253"), squared), ["8253"]),
    "ruled lines with a margin": (lambda: add(write("8253"), margin), ["8253"]),
    "digits that touch their cell": (lambda: add(write("3046"), touched_cell), ["3046"]),
    "a colon": (lambda: add(np.hstack([write("27"), write("53")]), colon), ["2753"]),
    "the corner of a desk": (lambda: add(np.pad(write("9176"), 40), corner_of_a_desk), ["9176"]),
    "a desk around a sheet": (lambda: add(np.pad(write("9176"), 40), desk_around_a_sheet), ["9176"]),
    "a smaller number below": (smaller_number_below, ["1572", "438"]),
    "indented lines": (indented_lines, ["15", "72", "43"]),
    "specks": (lambda: add(write("9176"), specks), ["9176"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(
    "colors", [((255, 255, 255), (0, 0, 0)), ((20, 30, 20), (200, 210, 180))], ids=["dark", "light"]
)
def test_numbers_are_read(classifiers, kind, colors):
    write_ink, expected = NUMBERS[kind]
    assert read(paint(write_ink(), *colors), classifiers) == expected


@pytest.mark.parametrize("colors", [((240, 240, 240), (20, 20, 20)), ((20, 30, 20), (200, 210, 180))])
def test_numbers_are_read_on_a_sheet_whose_background_is_like_the_ink(classifiers, colors):
    sheet = Image.fromarray(paint(write("9176"), *colors)).rotate(
        4, Image.Resampling.BICUBIC, True, fillcolor=colors[1]
    )
    background = Image.new("RGB", (sheet.width + 300, sheet.height + 300), colors[1])
    background.paste(sheet, (150, 150))
    assert read(background, classifiers) == ["9176"]


@pytest.mark.parametrize("size", [(2050, 701), (701, 2050), (4099, 900)])
def test_boxes_stay_inside_a_picture_that_was_reduced(classifiers, size):
    ink = write("27")
    ink = ink[: np.flatnonzero(ink.max(axis=1) > 0.5)[-1]]  # the digits reach the lower border
    picture = Image.fromarray(paint(ink)).resize(size)
    (line,) = reading.read_picture(encode(picture), classifiers, 16_000_000)["lines"]
    boxes = [digit["box"] for digit in line["digits"]]
    assert max(box["left"] + box["width"] for box in boxes) <= size[0]
    assert max(box["top"] + box["height"] for box in boxes) == size[1]


def test_many_strokes_above_each_other_are_refused(classifiers):
    """The candidates, runs of strokes that may be one digit, would take seconds to classify."""
    picture = Image.new("L", (1800, 1100), 255)
    for x in range(0, 1500, 24):
        ImageDraw.Draw(picture).line([(x, 1100), (x + 300, 0)], fill=0, width=4)
    with pytest.raises(RequestError, match="^picture: expected digits side by side, got too many strokes above each"):
        reading.read_picture(encode(picture), classifiers, 16_000_000)


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
