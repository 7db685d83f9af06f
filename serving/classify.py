"""Read pictures of numbers on the command line: `python -m serving.classify --help`."""

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from serving import models, reading
from serving.errors import RequestError, StartError
from serving.limits import Limits
from serving.models import Model

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".heif")  # pictures too: reported as errors instead of left out


def main() -> None:
    """Print the text of every picture; exit with 1 if a picture could not be read."""
    arguments = parse_arguments()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently when the reader does, as in `| head`
    try:
        loaded = models.load_models(arguments.repository)
        names = list_pictures(arguments.files)
    except (OSError, StartError) as error:
        sys.exit(f"classify: {error}")
    results = []
    for name in names:
        result = {"file": printable_name(name)} | classify_file(name, loaded.values())
        results.append(result)
        if arguments.json:
            print(orjson.dumps(result).decode(), flush=True)
    if not arguments.json:
        print(text_table(results))
    sys.exit(any("error" in result for result in results))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.classify", description="Read the numbers in pictures.")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="PNG, JPEG or WebP file, directory of them, or - (stdin)"
    )
    parser.add_argument(
        "--repository", type=Path, default=models.REPOSITORY, help="model repository (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON per picture, with each digit's box and predictions"
    )
    return parser.parse_args()


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


def classify_file(name: str, loaded: Iterable[Model]) -> dict[str, Any]:
    """Return the lines of text in a picture, or the error."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return reading.read_picture(content, loaded, Limits.max_pixels)
    except OSError as error:
        return {"error": f"picture: expected a readable file, got: {error.strerror}"}
    except RequestError as error:
        return {"error": str(error)}


def text_table(results: list[dict[str, Any]]) -> str:
    """Return a table with one row per line of text, or with a picture's error."""
    rows = [["file", "text", "confidence"], *(row for result in results for row in text_rows(result))]
    file_width = max(len(file) for file, *_ in rows)
    text_width = max(len(text) for _, text, *confidence in rows if confidence)
    return "\n".join(
        "  ".join([file.ljust(file_width), text.ljust(text_width), *confidence]).rstrip()
        for file, text, *confidence in rows
    )


def text_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the table cells of a picture's lines: file, text and confidence; or file and error."""
    if "error" in result:
        return [[result["file"], result["error"]]]
    return [[result["file"], line["text"], f"{line['confidence']:.1%}"] for line in result["lines"]]


if __name__ == "__main__":
    main()
