"""Classify pictures of digits on the command line: `python -m serving.classify --help`."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from serving import digits, models
from serving.errors import RequestError, StartError
from serving.limits import Limits
from serving.models import Model

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".heif")  # pictures too: reported as errors instead of left out


def main() -> None:
    """Print each model's prediction for every picture; exit with 1 if a picture could not be classified."""
    arguments = parse_arguments()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently when the reader does, as in `| head`
    try:
        loaded = models.load_models(arguments.repository)
        names = list_pictures(arguments.files)
    except (OSError, StartError) as error:
        sys.exit(f"classify: {error}")
    classifiers = [model for model in loaded.values() if digits.is_digit_classifier(model)]
    results = []
    for name in names:
        result = {"file": printable_name(name)} | classify_file(name, classifiers, arguments.image)
        results.append(result)
        if arguments.json:
            print(orjson.dumps(result).decode(), flush=True)
    if not arguments.json:
        print(predictions_table(results, classifiers))
    sys.exit(any("error" in result for result in results))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.classify", description="Classify pictures of single digits with every model."
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="PNG, JPEG or WebP file, directory of them, or - (stdin)"
    )
    parser.add_argument(
        "--repository", type=Path, default=models.REPOSITORY, help="model repository (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per picture")
    parser.add_argument(
        "--image", action="store_true", help="with --json: include the 28 x 28 pixels that the models receive"
    )
    arguments = parser.parse_args()
    if arguments.image and not arguments.json:
        parser.error("--image: expected --json, too, got --image alone")
    return arguments


def list_pictures(names: list[str]) -> list[str]:
    """Replace directories by the pictures in them. Raises StartError if a directory has none."""
    pictures = []
    for name in names:
        if not Path(name).is_dir():
            pictures.append(name)
            continue
        files = [
            str(file) for file in sorted(Path(name).iterdir()) if file.suffix.lower() in SUFFIXES + UNSUPPORTED_SUFFIXES
        ]
        if not files:
            raise StartError(f"{name}: expected pictures ({', '.join(SUFFIXES)}), got none")
        pictures += files
    return pictures


def printable_name(name: str) -> str:
    """Return a file's name as one line of valid Unicode: names on Linux are bytes, and may hold line breaks."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def classify_file(name: str, classifiers: list[Model], with_image: bool) -> dict[str, Any]:
    """Return the predictions for a picture, and on request the models' input image, or the error."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        image, predictions = digits.classify_picture(content, classifiers, Limits.max_pixels)
    except OSError as error:
        return {"error": f"picture: expected a readable file, got: {error.strerror}"}
    except RequestError as error:
        return {"error": str(error)}
    return ({"image": image.tolist()} if with_image else {}) | {"models": predictions}


def predictions_table(results: list[dict[str, Any]], classifiers: list[Model]) -> str:
    """Return a text table with one row per picture: each model's label and its probability, or the error."""
    header = ["file", *(model.name for model in classifiers)]
    rows = [header, *([result["file"], *format_predictions(result)] for result in results)]
    widths = [max(len(name) for name, *_ in rows)]
    widths += [max(len(model.name), *(len(f"{label} 100.0%") for label in model.labels)) for model in classifiers]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def format_predictions(result: dict[str, Any]) -> list[str]:
    """Return the table cells of a picture, without its name."""
    if "error" in result:
        return [result["error"]]
    predictions = result["models"].values()
    return [f"{it['label']} {it['probabilities'][it['label']]:.1%}" for it in predictions]


if __name__ == "__main__":
    main()
