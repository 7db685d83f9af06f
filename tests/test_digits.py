"""Pictures of digits, as people make them, and of other things."""

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from serving import digits, models
from serving.errors import RequestError
from tests.conftest import PROJECT
from tests.drawing import strokes

PIXELS = 1_000_000


def encode(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def drawn(digit: int, size: int = 180, pen: int = 12, left: int = 80, top: int = 60) -> np.ndarray:
    """A digit on a canvas of 300 x 300, as an array from 0 to 1."""
    picture = Image.new("L", (1200, 1200))
    for stroke in strokes(digit, size, left, top):
        points = [(4 * x, 4 * y) for x, y in stroke]
        ImageDraw.Draw(picture).line(points, fill=255, width=4 * pen, joint="curve")
    return np.asarray(picture.resize((300, 300), Image.Resampling.BOX)) / 255


def paint(ink: np.ndarray, ground=(255, 255, 255), colour=(0, 0, 0)) -> np.ndarray:
    """Draw with one colour on another."""
    ground, colour = np.asarray(ground), np.asarray(colour)
    return (ground + ink[..., None] * (colour - ground)).clip(0, 255).astype(np.uint8)


def pasted(image: np.ndarray, random: np.random.Generator) -> bytes:
    """A test image on a canvas of 100 to 1,000 pixels, at a random place, size, contrast and polarity."""
    side = random.integers(100, 1001)
    size = random.integers(28, side + 1)
    left, top = random.integers(0, side - size + 1, 2)
    ground = random.integers(0, 256)
    colour = random.choice([grey for grey in range(256) if abs(grey - ground) >= 64])
    ink = np.zeros((side, side))
    ink[top : top + size, left : left + size] = np.asarray(Image.fromarray(image).resize((size, size))) / 255
    return encode((ground + ink * (float(colour) - ground)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def cnn(shipped) -> models.Model:
    return models.load(shipped)["cnn"]


def read(content: bytes, model: models.Model) -> str:
    _, answers = digits.read(content, [model], PIXELS)
    return answers[model.name]["label"]


def test_mnist_pasted_anywhere_is_read(test_set, cnn):
    images, labels = test_set
    random = np.random.default_rng(0)
    chosen = random.choice(len(images), 500, replace=False)
    right = 0
    for index in chosen:
        with contextlib.suppress(RequestError):
            right += read(pasted(images[index], random), cnn) == str(labels[index])
    assert right / len(chosen) >= 0.98


def test_other_peoples_digits_are_read(cnn):
    images, labels = load_digits(return_X_y=True)
    right = 0
    for image, label in zip(images[:500].reshape(-1, 8, 8), labels):
        picture = Image.fromarray(255 - (image * 15.9).astype(np.uint8)).resize((64, 64))
        with contextlib.suppress(RequestError):
            right += read(encode(picture), cnn) == str(label)
    assert right / 500 >= 0.93  # 16 grey levels of 8 x 8 pixels


def test_an_image_of_mnist_stays_as_it_is(test_set):
    images, _ = test_set
    differences = []
    for image in images[:100]:
        found = digits.normalize(encode(image), PIXELS)
        differences.append(np.abs(found.astype(int) - image).mean())
    assert np.mean(differences) < 8  # of 255


@pytest.mark.parametrize("pen", [1, 3, 12, 24, 36])
@pytest.mark.parametrize("digit", range(10))
def test_thin_and_thick_pens_are_read(cnn, digit, pen):
    assert read(encode(paint(drawn(digit, pen=pen))), cnn) == str(digit)


@pytest.mark.parametrize("size, left, top", [(40, 5, 5), (40, 265, 250), (260, 20, 20)])
@pytest.mark.parametrize("digit", range(10))
def test_small_digits_in_corners_are_read(cnn, digit, size, left, top):
    assert read(encode(paint(drawn(digit, size, max(2, size // 15), left, top))), cnn) == str(digit)


def transparent(grey: int) -> Image.Image:
    ink = (255 * drawn(7)).astype(np.uint8)
    return Image.merge("LA", [Image.new("L", (300, 300), grey), Image.fromarray(ink)])


def upside_down() -> bytes:
    """Stored on its head, with the note that says so."""
    note = Image.Exif()
    note[0x0112], note[0x0132] = 3, "2026-11"
    return encode(paint(drawn(7))[::-1, ::-1].copy(), "JPEG", exif=note)


def broken_metadata() -> bytes:
    """On its head, and with a date that is a fraction, which no writer can repeat."""
    date = struct.pack(">HHI", 0x0132, 2, 8), struct.pack(">HHI", 0x0132, 5, 1)
    assert date[0] in upside_down()
    return upside_down().replace(*date)


def framed(inset: int, width: int) -> bytes:
    picture = Image.fromarray(paint(drawn(7)))
    ImageDraw.Draw(picture).rectangle((inset, inset, 299 - inset, 299 - inset), outline="black", width=width)
    return encode(picture)


def on_a_table(share: float, angle: float = 0) -> bytes:
    """A white sheet on wood, that takes up a share of the picture."""
    grain = 150 + 20 * np.sin(np.arange(400) / 4)
    table = Image.fromarray((grain[:, None, None] * [1, 0.8, 0.6] * np.ones((1, 400, 1))).astype(np.uint8))
    side = round(400 * share**0.5)
    sheet = Image.fromarray(paint(drawn(7))).resize((side, side)).convert("RGBA")
    sheet = sheet.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    table.paste(sheet, ((400 - sheet.width) // 2, (400 - sheet.height) // 2), sheet)
    return encode(table)


def with_dark_corners() -> bytes:
    squares = np.linspace(-1, 1, 300) ** 2
    light = 1 - 0.2 * (squares + squares[:, None])
    return encode((paint(drawn(7)) * light[..., None]).astype(np.uint8))


SEVENS = {
    "dark on light": lambda: encode(paint(drawn(7))),
    "light on dark": lambda: encode(paint(drawn(7), (0, 0, 0), (255, 255, 255))),
    "red on green of the same brightness": lambda: encode(paint(drawn(7), (0, 102, 0), (200, 0, 0))),
    "low contrast": lambda: encode(paint(drawn(7), (200, 200, 200), (160, 160, 160))),
    "JPEG": lambda: encode(paint(drawn(7)), "JPEG", quality=30),
    "JPEG in CMYK": lambda: encode(Image.fromarray(paint(drawn(7))).convert("CMYK"), "JPEG"),
    "WebP": lambda: encode(paint(drawn(7)), "WEBP"),
    "16 bits": lambda: encode((65535 * drawn(7)).astype(np.uint16)),
    "1 bit": lambda: encode(Image.fromarray(drawn(7) > 0.5)),
    "a palette": lambda: encode(Image.fromarray(paint(drawn(7))).quantize(8)),
    "black on nothing": lambda: encode(transparent(0)),
    "white on nothing": lambda: encode(transparent(255)),
    "turned by its metadata": upside_down,
    "broken metadata": broken_metadata,
    "light from one side": lambda: encode((paint(drawn(7)) * np.linspace(0.4, 1, 300)[:, None]).astype(np.uint8)),
    "dark corners": with_dark_corners,
    "a frame at the edge": lambda: framed(0, 1),
    "a wide frame at the edge": lambda: framed(0, 30),
    "a frame": lambda: framed(20, 3),
    "a sheet on a table": lambda: on_a_table(0.56),
    "a small sheet on a table": lambda: on_a_table(0.15),
    "a sheet that lies askew": lambda: on_a_table(0.4, angle=8),
    "noise": lambda: encode(
        (paint(drawn(7)) * 0.8 + np.random.default_rng(0).normal(20, 9, (300, 300, 1))).astype("u1")
    ),
    "specks": lambda: encode(paint(np.where(np.random.default_rng(0).random((300, 300)) < 0.001, 1, drawn(7)))),
    "wide": lambda: encode(paint(np.pad(drawn(7), ((0, 0), (600, 0))))),
}


@pytest.mark.parametrize("kind", SEVENS)
def test_every_kind_of_picture_is_read(cnn, kind):
    assert read(SEVENS[kind](), cnn) == "7"


def beside(one: int, other: int) -> np.ndarray:
    return drawn(one, 120, 8, 40, 80) + drawn(other, 120, 8, 150, 80)


NOT_ONE_DIGIT = {
    "white": (lambda: encode(np.full((300, 300), 255, np.uint8)), 422, "the picture is empty"),
    "black": (lambda: encode(np.zeros((1, 1), np.uint8)), 422, "the picture is empty"),
    "fully transparent": (lambda: encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), 422, "the picture is empty"),
    "noise alone": (
        lambda: encode(np.random.default_rng(0).normal(128, 20, (300, 300)).astype(np.uint8)),
        422,
        "the picture is empty",
    ),
    "a shade": (
        lambda: encode(np.linspace(50, 200, 90000).reshape(300, 300).astype(np.uint8)),
        422,
        "the picture is empty",
    ),
    "two digits": (lambda: encode(paint(beside(3, 8))), 422, "several things"),
    "a one and a zero": (lambda: encode(paint(beside(1, 0))), 422, "several things"),
    "one above the other": (
        lambda: encode(paint(drawn(2, 90, 8, 90, 20) + drawn(4, 90, 8, 90, 180))),
        422,
        "several things",
    ),
    "a square": (lambda: encode(paint(np.pad(np.ones((20, 20)), 100))), 422, "a blot"),
    "a dot": (lambda: encode(paint(np.hypot(*np.mgrid[-150:150, -150:150]) < 14)), 422, "a blot"),
    "too large": (lambda: encode(Image.new("1", (1001, 1000))), 413, "1001 x 1000 pixels; allowed: 1,000,000"),
    "a bomb": (lambda: encode(Image.new("1", (30_000, 30_000))), 413, "30000 x 30000 pixels"),
    "many scans": (lambda: SEVENS["JPEG"]() + b"\xff\xda" * 200, 413, "too many scans; allowed: 200"),
    "GIF": (lambda: encode(paint(drawn(7)), "GIF"), 415, "allowed: PNG, JPEG, WEBP"),
    "text": (lambda: b"seven", 415, "allowed: PNG, JPEG, WEBP"),
    "nothing": (lambda: b"", 415, "allowed: PNG, JPEG, WEBP"),
    "the half of a PNG": (
        lambda: (content := encode(paint(drawn(7))))[: len(content) // 2],
        415,
        "no picture that can be read",
    ),
}


@pytest.mark.parametrize("kind", NOT_ONE_DIGIT)
def test_what_is_not_one_digit_is_not_guessed(kind):
    make, status, error = NOT_ONE_DIGIT[kind]
    with pytest.raises(RequestError, match=error) as raised:
        digits.normalize(make(), PIXELS)
    assert raised.value.status == status


def test_a_digit_is_put_as_mnist_has_them():
    image = digits.normalize(encode(paint(drawn(8, 40, 3, 250, 20))), PIXELS)
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    y, x = (np.arange(28) @ image.sum(axis=axis) / image.sum() for axis in (1, 0))
    assert abs(y - 13.5) <= 1 and abs(x - 13.5) <= 1


@pytest.mark.parametrize("size", [300, 2000])
def test_a_bar_with_specks_is_thinned_to_a_one(cnn, size):
    bar = np.pad(np.ones((size, size // 3)), size // 5)
    bar[::40, ::40] = 0
    _, answers = digits.read(encode(paint(bar)), [cnn], 10_000_000)
    assert answers["cnn"]["label"] == "1"


def test_parts_hang_together_across_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]], bool)
    labels = digits.parts(mask)
    assert (labels > 0).tolist() == mask.tolist()
    assert len({labels[0, 0], labels[1, 1], labels[2, 0]}) == 1
    assert len({labels[0, 0], labels[0, 3], labels[3, 2]}) == 3
    assert labels[3, 2] == labels[3, 3] and labels[0, 3] == labels[1, 3]


def test_the_server_reads_a_picture(shipped_server):
    status, answer = shipped_server.json("/digits", SEVENS["JPEG"]())
    assert status == 200
    assert {name: it["label"] for name, it in answer["models"].items()} == dict.fromkeys(
        ("cnn", "cnn_int8", "fnn", "fnn_int8"), "7"
    )
    assert sum(answer["models"]["cnn"]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    request = {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": [[answer["image"]]]}]}
    status, again = shipped_server.json("/v2/models/cnn/infer", json.dumps(request).encode())
    assert again["outputs"][0]["data"] == [7]


@pytest.mark.parametrize("kind", ["white", "two digits", "text", "a bomb"])
def test_the_server_says_what_is_wrong_with_a_picture(server, kind):
    make, status, error = NOT_ONE_DIGIT[kind]
    got, answer = server.json("/digits", make())
    assert (got, error.split(";")[0] in answer["error"]) == (status, True), answer


def classify(repository, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "serving.classify", "--repository", str(repository), *arguments]
    return subprocess.run(command, cwd=PROJECT, input=stdin, capture_output=True)


def test_classify_prints_a_table_of_a_folder(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(SEVENS["dark on light"]())
    (tmp_path / "b.webp").write_bytes(SEVENS["WebP"]())
    (tmp_path / "notes.txt").write_text("no picture")
    ended = classify(shipped, str(tmp_path))
    head, *rows = ended.stdout.decode().splitlines()
    assert (ended.returncode, head.split()) == (0, ["file", "cnn", "cnn_int8", "fnn", "fnn_int8"])
    assert [(row.split()[0], row.split()[1::2]) for row in rows] == [
        (str(tmp_path / "a.png"), ["7"] * 4),
        (str(tmp_path / "b.webp"), ["7"] * 4),
    ]


def test_classify_prints_json_of_standard_input(shipped):
    ended = classify(shipped, "-", "--json", stdin=SEVENS["WebP"]())
    answer = json.loads(ended.stdout)
    assert (ended.returncode, answer["file"], answer["models"]["cnn"]["label"]) == (0, "-", "7")


def test_classify_says_what_is_wrong_and_goes_on(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(b"seven")
    ended = classify(shipped, str(tmp_path / "a.png"), "-", stdin=SEVENS["WebP"]())
    _, wrong, right = ended.stdout.decode().splitlines()
    assert ended.returncode == 1
    assert wrong == f"{tmp_path / 'a.png'}  this is no picture that can be read; allowed: PNG, JPEG, WEBP"
    assert right.split()[:2] == ["-", "7"]


def test_classify_tells_of_a_file_that_cannot_be_read_and_goes_on(shipped, tmp_path):
    (tmp_path / "a.png").symlink_to("nothing")
    (tmp_path / "b.png").write_bytes(SEVENS["dark on light"]())
    (tmp_path / "c.png").mkdir()
    ended = classify(shipped, str(tmp_path))
    _, gone, right, folder = ended.stdout.decode().splitlines()
    assert ended.returncode == 1
    assert gone == f"{tmp_path / 'a.png'}  cannot be read: No such file or directory"
    assert right.split()[1] == "7"
    assert folder == f"{tmp_path / 'c.png'}  cannot be read: Is a directory"


def test_classify_names_a_folder_without_pictures(shipped, tmp_path):
    ended = classify(shipped, str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.decode() == f"classify: {tmp_path} has no pictures; allowed: .jpeg, .jpg, .png, .webp\n"


def test_classify_takes_names_that_are_no_text(shipped, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    Path(os.fsdecode(name)).write_bytes(SEVENS["dark on light"]())
    answer = json.loads(classify(shipped, "--json", str(tmp_path)).stdout)
    assert (Path(answer["file"]).name, answer["models"]["cnn"]["label"]) == ("\N{REPLACEMENT CHARACTER}.png", "7")


def test_classify_prints_a_line_for_each_picture_whatever_its_name(shipped, tmp_path):
    (tmp_path / "a\nb.png").write_bytes(SEVENS["dark on light"]())
    ended = classify(shipped, str(tmp_path))
    assert len(ended.stdout.splitlines()) == 2


def test_classify_stops_when_no_one_reads_on(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(SEVENS["dark on light"]())
    command = f"{sys.executable} -m serving.classify --json --repository {shipped} {tmp_path} | true"
    ended = subprocess.run(command, shell=True, cwd=PROJECT, capture_output=True)
    assert ended.stderr == b""


def test_classify_works_with_one_model(shipped, tmp_path):
    shutil.copytree(shipped / "cnn", tmp_path / "cnn")
    ended = classify(tmp_path, "-", stdin=SEVENS["WebP"]())
    assert [line.split()[:2] for line in ended.stdout.decode().splitlines()] == [["file", "cnn"], ["-", "7"]]
