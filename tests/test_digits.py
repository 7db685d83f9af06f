"""Reading single digits: normalization, the endpoint /digits and the command line."""

import contextlib
import io
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw
from sklearn.datasets import load_digits

from serving import models, pictures, reading
from serving.errors import RequestError
from tests.conftest import PROJECT
from tests.drawing import digit_strokes

MAX_PIXELS = 1_000_000


def encode(picture: Image.Image | np.ndarray, file_format: str = "PNG", **options) -> bytes:
    """Return a picture as a file's content."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, file_format, **options)
    return file.getvalue()


def draw(digit: int, height: int = 180, pen: int = 12, left: int = 80, top: int = 60) -> np.ndarray:
    """Return the ink of a digit, from 0 to 1, on a canvas of 300 x 300 pixels; drawn at 4 times the resolution."""
    picture = Image.new("L", (1200, 1200))
    for stroke in digit_strokes(digit, height, left, top):
        points = [(4 * x, 4 * y) for x, y in stroke]
        ImageDraw.Draw(picture).line(points, fill=255, width=4 * pen, joint="curve")
    return np.asarray(picture.resize((300, 300), Image.Resampling.BOX)) / 255


def paint(ink: np.ndarray, background=(255, 255, 255), color=(0, 0, 0)) -> np.ndarray:
    """Return ink of one color on a background of another, uint8 [height, width, 3]."""
    background, color = np.asarray(background), np.asarray(color)
    return (background + ink[..., None] * (color - background)).clip(0, 255).astype(np.uint8)


def paste_image(image: np.ndarray, random: np.random.Generator) -> bytes:
    """Paste an MNIST image on a canvas of 100 to 1,000 pixels, at a random position, size, contrast and polarity."""
    side = random.integers(100, 1001)
    size = random.integers(28, side + 1)
    left, top = random.integers(0, side - size + 1, 2)
    background = random.integers(0, 256)
    color = random.choice([gray for gray in range(256) if abs(gray - background) >= 64])
    ink = np.zeros((side, side))
    ink[top : top + size, left : left + size] = np.asarray(Image.fromarray(image).resize((size, size))) / 255
    return encode((background + ink * (float(color) - background)).clip(0, 255).astype(np.uint8))


def read_text(content: bytes, classifiers: list[models.Model], max_pixels: int = MAX_PIXELS) -> str:
    """Return the lines of text in a picture, separated by slashes."""
    return "/".join(line["text"] for line in reading.read_picture(content, classifiers, max_pixels)["lines"])


def read_digit(content: bytes, classifiers: list[models.Model]) -> dict:
    """Return the answer for the only digit of a picture."""
    (line,) = reading.read_picture(content, classifiers, MAX_PIXELS)["lines"]
    (digit,) = line["digits"]
    return digit


def test_mnist_images_at_random_positions_sizes_and_contrasts_are_classified(test_set, classifiers):
    images, labels = test_set
    random = np.random.default_rng(0)
    chosen = random.choice(len(images), 200, replace=False)
    correct = 0
    for index in chosen:
        with contextlib.suppress(RequestError):
            correct += read_text(paste_image(images[index], random), classifiers) == str(labels[index])
    assert correct / len(chosen) >= 0.98


def test_digits_of_another_data_set_are_classified(classifiers):
    images, labels = load_digits(return_X_y=True)
    correct = 0
    for image, label in zip(images[:200].reshape(-1, 8, 8), labels):
        picture = Image.fromarray(255 - (image * 15.9).astype(np.uint8)).resize((64, 64))
        with contextlib.suppress(RequestError):
            correct += read_text(encode(picture), classifiers) == str(label)
    assert correct / 200 >= 0.93  # the images have only 8 x 8 pixels and 16 gray levels


def test_normalization_hardly_changes_mnist_images(test_set, classifiers):
    images, _ = test_set
    differences = [
        np.abs(np.array(read_digit(encode(image), classifiers)["image"]) - image).mean() for image in images[:70]
    ]
    assert np.mean(differences) < 8  # of 255


@pytest.mark.parametrize("pen", [1, 3, 12, 24, 36])
@pytest.mark.parametrize("digit", range(10))
def test_digits_of_thin_and_thick_strokes_are_classified(classifiers, digit, pen):
    assert read_text(encode(paint(draw(digit, pen=pen))), classifiers) == str(digit)


@pytest.mark.parametrize("height, left, top", [(40, 5, 5), (40, 265, 250), (260, 20, 20)])
@pytest.mark.parametrize("digit", range(10))
def test_small_and_off_center_digits_are_classified(classifiers, digit, height, left, top):
    assert read_text(encode(paint(draw(digit, height, max(2, height // 15), left, top))), classifiers) == str(digit)


def transparent(gray: int) -> Image.Image:
    """Return a digit of one gray level on a fully transparent background."""
    ink = (255 * draw(7)).astype(np.uint8)
    return Image.merge("LA", [Image.new("L", (300, 300), gray), Image.fromarray(ink)])


def rotated_by_exif() -> bytes:
    """Return a JPEG that is stored upside down, with EXIF metadata that say so."""
    metadata = Image.Exif()
    metadata[ExifTags.Base.Orientation], metadata[ExifTags.Base.DateTime] = 3, "2026-11"
    return encode(paint(draw(7))[::-1, ::-1].copy(), "JPEG", exif=metadata)


def corrupt_exif() -> bytes:
    """Return a JPEG that is stored upside down, whose EXIF date has the type of a fraction: Pillow cannot write it."""
    ascii_date, rational_date = struct.pack(">HHI", 0x0132, 2, 8), struct.pack(">HHI", 0x0132, 5, 1)
    assert ascii_date in rotated_by_exif()
    return rotated_by_exif().replace(ascii_date, rational_date)


def framed(inset: int, width: int) -> bytes:
    """Return a digit in a rectangular frame with this distance from the border."""
    picture = Image.fromarray(paint(draw(7)))
    ImageDraw.Draw(picture).rectangle((inset, inset, 299 - inset, 299 - inset), outline="black", width=width)
    return encode(picture)


def on_wood(fraction: float, angle: float = 0) -> bytes:
    """Return a white sheet on a wooden table; it covers a fraction of the picture, rotated by some degrees."""
    grain = 150 + 20 * np.sin(np.arange(400) / 4)
    table = Image.fromarray((grain[:, None, None] * [1, 0.8, 0.6] * np.ones((1, 400, 1))).astype(np.uint8))
    side = round(400 * fraction**0.5)
    sheet = Image.fromarray(paint(draw(7))).resize((side, side)).convert("RGBA")
    sheet = sheet.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    table.paste(sheet, ((400 - sheet.width) // 2, (400 - sheet.height) // 2), sheet)
    return encode(table)


def vignetted() -> bytes:
    """Return a digit in a picture that is darker in its corners."""
    squares = np.linspace(-1, 1, 300) ** 2
    light = 1 - 0.2 * (squares + squares[:, None])
    return encode((paint(draw(7)) * light[..., None]).astype(np.uint8))


SEVENS = {
    "dark on light": lambda: encode(paint(draw(7))),
    "light on dark": lambda: encode(paint(draw(7), (0, 0, 0), (255, 255, 255))),
    "red on green of equal brightness": lambda: encode(paint(draw(7), (0, 102, 0), (200, 0, 0))),
    "low contrast": lambda: encode(paint(draw(7), (200, 200, 200), (160, 160, 160))),
    "JPEG": lambda: encode(paint(draw(7)), "JPEG", quality=30),
    "JPEG in CMYK": lambda: encode(Image.fromarray(paint(draw(7))).convert("CMYK"), "JPEG"),
    "WebP": lambda: encode(paint(draw(7)), "WEBP"),
    "16 bits per pixel": lambda: encode((65535 * draw(7)).astype(np.uint16)),
    "1 bit per pixel": lambda: encode(Image.fromarray(draw(7) > 0.5)),
    "color palette": lambda: encode(Image.fromarray(paint(draw(7))).quantize(8)),
    "black on transparent": lambda: encode(transparent(0)),
    "white on transparent": lambda: encode(transparent(255)),
    "rotated by EXIF": rotated_by_exif,
    "corrupt EXIF": corrupt_exif,
    "light from one side": lambda: encode((paint(draw(7)) * np.linspace(0.4, 1, 300)[:, None]).astype(np.uint8)),
    "vignetting": vignetted,
    "thin frame at the border": lambda: framed(0, 1),
    "wide frame at the border": lambda: framed(0, 30),
    "frame inside the picture": lambda: framed(20, 3),
    "sheet on a table": lambda: on_wood(0.56),
    "small sheet on a table": lambda: on_wood(0.15),
    "rotated sheet on a table": lambda: on_wood(0.4, angle=8),
    "noise": lambda: encode(
        (paint(draw(7)) * 0.8 + np.random.default_rng(0).normal(20, 9, (300, 300, 1))).astype("u1")
    ),
    "specks": lambda: encode(paint(np.where(np.random.default_rng(0).random((300, 300)) < 0.001, 1, draw(7)))),
    "wide picture": lambda: encode(paint(np.pad(draw(7), ((0, 0), (600, 0))))),
}


@pytest.mark.parametrize("kind", SEVENS)
def test_a_seven_is_classified_in_every_kind_of_picture(classifiers, kind):
    assert read_text(SEVENS[kind](), classifiers) == "7"


EMPTY = (422, "expected digits, got an empty picture")
UNDECODABLE = (415, "expected PNG, JPEG, WEBP, got a file that cannot be decoded")


def repeat_scan(content: bytes) -> bytes:
    """Return a JPEG file with 200 more scans in its first picture."""
    start, end = content.index(b"\xff\xda"), content.index(b"\xff\xd9")
    return content[:end] + 200 * content[start:end] + content[end:]


INVALID_PICTURES = {  # content, status, error
    "white": (lambda: encode(np.full((300, 300), 255, np.uint8)), *EMPTY),
    "black": (lambda: encode(np.zeros((1, 1), np.uint8)), *EMPTY),
    "fully transparent": (lambda: encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), *EMPTY),
    "only noise": (lambda: encode(np.random.default_rng(0).normal(128, 20, (300, 300)).astype(np.uint8)), *EMPTY),
    "gradient": (lambda: encode(np.linspace(50, 200, 90000).reshape(300, 300).astype(np.uint8)), *EMPTY),
    "too many pixels": (
        lambda: encode(Image.new("1", (1001, 1000))),
        413,
        "expected at most 1,000,000 pixels, got 1001 x 1000",
    ),
    "decompression bomb": (lambda: encode(Image.new("1", (30_000, 30_000))), 413, "got 30000 x 30000"),
    "many JPEG scans": (lambda: repeat_scan(SEVENS["JPEG"]()), 413, "expected at most 200 JPEG scans, got 201"),
    "GIF": (lambda: encode(paint(draw(7)), "GIF"), *UNDECODABLE),
    "text": (lambda: b"seven", *UNDECODABLE),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), 415, "got HEIC or AVIF; save it as JPEG"),
    "empty file": (lambda: b"", 415, "got an empty file"),
    "truncated PNG": (lambda: (content := encode(paint(draw(7))))[: len(content) // 2], *UNDECODABLE),
}


@pytest.mark.parametrize("kind", INVALID_PICTURES)
def test_an_invalid_picture_is_refused_with_the_reason(classifiers, kind):
    make, status, error = INVALID_PICTURES[kind]
    with pytest.raises(RequestError, match=f"^picture: .*{error}$") as raised:
        reading.read_picture(make(), classifiers, MAX_PIXELS)
    assert raised.value.status == status


def large_jpeg(width: int, height: int, **options) -> bytes:
    """Return a JPEG of a seven that fills a large picture."""
    return encode(Image.fromarray(paint(draw(7))).resize((width, height)), "JPEG", **options)


def test_a_large_jpeg_of_one_scan_is_decoded_at_a_reduced_scale(classifiers):
    content = large_jpeg(8000, 6000)
    assert pictures.load_pixels(content, 16_000_000).size == (2000, 1500)
    assert read_text(content, classifiers, 16_000_000) == "7"


def test_a_thumbnail_in_the_metadata_is_no_scan_of_the_picture():
    metadata = Image.Exif()
    metadata[ExifTags.Base.ImageDescription] = "\xff\xda".encode("latin-1")
    content = large_jpeg(1500, 1000, exif=metadata)
    assert content.count(pictures.START_OF_SCAN) == 2
    assert pictures.load_pixels(content, 1_000_000).size == (1500, 1000)


def two_pictures(picture: Image.Image) -> bytes:
    """Return a file in MPO, with the same picture twice."""
    return encode(picture, "MPO", save_all=True, append_images=[picture])


def test_a_large_jpeg_of_many_scans_is_refused():
    """Libjpeg would hold all of its coefficients in memory."""
    content = large_jpeg(1500, 1000, progressive=True)
    with pytest.raises(RequestError, match="^picture: expected at most 1,000,000 pixels, got 1500 x 1000$"):
        pictures.load_pixels(content, 1_000_000)


def test_the_scans_of_an_mpo_file_are_limited_too():
    content = repeat_scan(two_pictures(Image.fromarray(paint(draw(7)))))
    assert Image.open(io.BytesIO(content)).format == "MPO"
    with pytest.raises(RequestError, match="^picture: expected at most 200 JPEG scans, got 201$"):
        pictures.load_pixels(content, MAX_PIXELS)


def test_what_phones_append_to_a_picture_is_not_counted_as_its_scans():
    content = two_pictures(Image.fromarray(paint(draw(7))).resize((1500, 1000)))
    assert pictures.load_pixels(content + pictures.START_OF_SCAN * 200, 1_000_000).size == (1500, 1000)


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000)])
def test_a_jpeg_of_one_row_or_column_is_decoded(size):
    assert pictures.load_pixels(encode(Image.new("L", size), "JPEG"), MAX_PIXELS).size == size


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_gray_values_of_16_bits_may_use_the_lower_bits_only(classifiers, bits):
    content = encode(((2**bits - 1) * draw(7)).astype(np.uint16))
    assert read_text(content, classifiers) == "7"
    assert np.asarray(pictures.decode_picture(content, MAX_PIXELS)[0]).max() == 255


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["sequential", "progressive"])
def test_a_jpeg_without_its_last_two_bytes_is_read(options):
    content = encode(paint(draw(7)), "JPEG", **options)
    whole, cut = (pictures.decode_picture(each, MAX_PIXELS)[0] for each in (content, content[:-2]))
    assert np.array_equal(np.asarray(whole), np.asarray(cut))


def test_a_large_jpeg_without_its_last_two_bytes_is_decoded_at_a_reduced_scale():
    assert pictures.load_pixels(large_jpeg(8000, 6000)[:-2], 16_000_000).size == (2000, 1500)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["sequential", "progressive"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_a_jpeg_with_missing_rows_is_refused(options, fraction):
    content = encode(paint(draw(7)), "JPEG", **options)
    with pytest.raises(RequestError, match="got a file that cannot be decoded$"):
        pictures.decode_picture(content[: int(fraction * len(content))], MAX_PIXELS)


def test_a_digit_is_centered_and_scaled_like_mnist(classifiers):
    image = np.array(read_digit(encode(paint(draw(8, 40, 3, 250, 20))), classifiers)["image"])
    assert image.shape == (28, 28) and 0 == image.min() < image.max() <= 255
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    y, x = (np.arange(28) @ image.sum(axis=axis) / image.sum() for axis in (1, 0))
    assert abs(y - 13.5) <= 1 and abs(x - 13.5) <= 1


@pytest.mark.parametrize("size", [300, 2000])
def test_a_wide_bar_with_holes_is_eroded_to_a_one(classifiers, size):
    bar = np.pad(np.ones((size, size // 3)), size // 5)
    bar[::40, ::40] = 0
    assert read_text(encode(paint(bar)), classifiers, 10_000_000) == "1"


def test_the_digits_endpoint_answers_with_text_boxes_images_and_the_prediction_of_each_model(shipped_server):
    status, answer = shipped_server.json("/digits", SEVENS["JPEG"]())
    assert (status, list(answer)) == (200, ["lines"])
    ((line,), (digit,)) = answer["lines"], answer["lines"][0]["digits"]
    assert (line["text"], digit["label"]) == ("7", "7")
    assert line["confidence"] == digit["confidence"] > 0.9
    labels = {name: prediction["label"] for name, prediction in digit["models"].items()}
    assert labels == dict.fromkeys(("cnn", "cnn_int8", "fnn", "fnn_int8"), "7")
    assert sum(digit["models"]["cnn"]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    request = {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": [[digit["image"]]]}]}
    status, inference = shipped_server.json("/v2/models/cnn/infer", json.dumps(request).encode())
    assert (status, inference["outputs"][0]["data"]) == (200, [7])


def form(*parts: tuple[str, bytes], boundary: str = "limit") -> bytes:
    """Return a form of parts, each with the attributes of its Content-Disposition and its content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {attributes}\r\n\r\n".encode() + content + b"\r\n"
        for attributes, content in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


FORM_TYPE = {"Content-Type": 'multipart/form-data; boundary="limit"'}
FILE, FIELD = 'name="file"; filename="7.jpg"', 'name="note"'


def test_the_digits_endpoint_takes_the_file_of_a_form(shipped_server):
    picture = SEVENS["JPEG"]()
    plain = shipped_server.json("/digits", picture)
    for parts in [(FILE, picture)], [(FIELD, b"a seven"), (FILE, picture)]:
        assert shipped_server.json("/digits", form(*parts), **FORM_TYPE) == plain


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form((FILE, b"a"), (FILE, b"b")), "a form with one file, got several"),
        (form((FIELD, b"a")), "a form with one file, got none"),
        (form((FILE, b"a"), boundary="other"), "a form in the format multipart/form-data, got: "),
        (b"", "a form with one file, got none"),
    ],
)
def test_the_digits_endpoint_refuses_another_form(server, body, expected):
    status, answer = server.json("/digits", body, **FORM_TYPE)
    assert (status, list(answer)) == (400, ["error"])
    assert answer["error"].startswith(f"body: expected {expected}")
    assert server.json("/digits", body, **{"Content-Type": "multipart/form-data"})[0] == 400


def test_the_digits_endpoint_limits_the_fields_of_a_form(server):
    status, answer = server.json("/digits", form(*[(FIELD, b"")] * 200), **FORM_TYPE)
    assert (status, answer) == (413, {"error": "body: expected a form with at most 100 fields, got more"})


@pytest.mark.parametrize("kind", ["white", "text", "decompression bomb"])
def test_the_digits_endpoint_refuses_an_invalid_picture_with_the_reason(server, kind):
    make, status, error = INVALID_PICTURES[kind]
    answered_status, answer = server.json("/digits", make())
    assert (answered_status, list(answer)) == (status, ["error"])
    assert error in answer["error"]


def classify(repository, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "serving.classify", "--repository", str(repository), *arguments]
    return subprocess.run(command, cwd=PROJECT, input=stdin, capture_output=True)


def test_classify_prints_a_table_of_the_pictures_in_a_directory(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(SEVENS["dark on light"]())
    (tmp_path / "b.webp").write_bytes(SEVENS["WebP"]())
    (tmp_path / "notes.txt").write_text("not a picture")
    result = classify(shipped, str(tmp_path))
    header, *rows = result.stdout.decode().splitlines()
    assert (result.returncode, header.split()) == (0, ["file", "text", "confidence"])
    assert [row.split()[:2] for row in rows] == [[str(tmp_path / "a.png"), "7"], [str(tmp_path / "b.webp"), "7"]]


def test_classify_reports_pictures_in_formats_that_it_cannot_read(shipped, tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "b.png").write_bytes(SEVENS["dark on light"]())
    result = classify(shipped, str(tmp_path))
    _, unreadable, valid = result.stdout.decode().splitlines()
    assert result.returncode == 1
    assert unreadable.endswith("picture: expected PNG, JPEG, WEBP, got HEIC or AVIF; save it as JPEG")
    assert valid.split()[1] == "7"


def test_classify_prints_json_for_standard_input(shipped):
    result = classify(shipped, "-", "--json", stdin=SEVENS["WebP"]())
    line = json.loads(result.stdout)
    assert (result.returncode, list(line)) == (0, ["file", "lines"])
    assert (line["file"], line["lines"][0]["text"]) == ("-", "7")
    assert list(line["lines"][0]["digits"][0]["models"]) == ["cnn", "cnn_int8", "fnn", "fnn_int8"]


def test_classify_continues_after_an_invalid_picture(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(b"seven")
    result = classify(shipped, str(tmp_path / "a.png"), "-", stdin=SEVENS["WebP"]())
    _, invalid, valid = result.stdout.decode().splitlines()
    assert result.returncode == 1
    error = "picture: expected PNG, JPEG, WEBP, got a file that cannot be decoded"
    assert invalid == f"{tmp_path / 'a.png'}  {error}"
    assert valid.split()[:2] == ["-", "7"]


def test_classify_continues_after_an_unreadable_file(shipped, tmp_path):
    (tmp_path / "a.png").symlink_to("missing")
    (tmp_path / "b.png").write_bytes(SEVENS["dark on light"]())
    (tmp_path / "c.png").mkdir()
    result = classify(shipped, str(tmp_path))
    _, missing, valid, directory = result.stdout.decode().splitlines()
    assert result.returncode == 1
    assert missing == f"{tmp_path / 'a.png'}  picture: expected a readable file, got: No such file or directory"
    assert valid.split()[1] == "7"
    assert directory == f"{tmp_path / 'c.png'}  picture: expected a readable file, got: Is a directory"


def test_classify_refuses_a_directory_without_pictures(shipped, tmp_path):
    result = classify(shipped, str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.decode() == f"classify: {tmp_path}: expected pictures (.jpeg, .jpg, .png, .webp), got none\n"


def test_classify_accepts_file_names_that_are_not_utf8(shipped, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    Path(os.fsdecode(name)).write_bytes(SEVENS["dark on light"]())
    line = json.loads(classify(shipped, "--json", str(tmp_path)).stdout)
    assert (Path(line["file"]).name, line["lines"][0]["text"]) == ("\N{REPLACEMENT CHARACTER}.png", "7")


def test_classify_prints_one_line_for_a_file_name_with_a_line_break(shipped, tmp_path):
    (tmp_path / "a\nb.png").write_bytes(SEVENS["dark on light"]())
    result = classify(shipped, str(tmp_path))
    assert len(result.stdout.splitlines()) == 2


def test_classify_ends_silently_when_its_output_is_closed(shipped, tmp_path):
    (tmp_path / "a.png").write_bytes(SEVENS["dark on light"]())
    command = [sys.executable, "-m", "serving.classify", "--json", "--repository", str(shipped), str(tmp_path)]
    result = subprocess.run(f"{shlex.join(command)} | true", shell=True, cwd=PROJECT, capture_output=True)
    assert result.stderr == b""


def test_classify_works_with_one_model(shipped, tmp_path):
    shutil.copytree(shipped / "cnn", tmp_path / "cnn")
    result = classify(tmp_path, "-", stdin=SEVENS["WebP"]())
    assert [line.split()[:2] for line in result.stdout.decode().splitlines()] == [["file", "text"], ["-", "7"]]
