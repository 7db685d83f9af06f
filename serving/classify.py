"""Read the digits in pictures: `python -m serving.classify --help`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from serving import digits, models
from serving.app import Limits
from serving.errors import RequestError, StartError
from serving.models import REPOSITORY, Model

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.classify", description="Read the digits in pictures.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a PNG, JPEG or WebP; a folder of them; -: stdin")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="the models' folder")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    given = parser.parse_args()
    answers = {}
    try:
        readers = [model for model in models.load(given.repository).values() if digits.suits(model)]
        for name, content in contents(given.files):
            answers[name] = answer(content, readers)
            if given.json:
                print(orjson.dumps({"file": name} | answers[name]).decode(), flush=True)
    except (OSError, StartError) as error:
        sys.exit(f"classify: {error}")
    if not given.json:
        print(table(answers, readers))
    sys.exit(any("error" in found for found in answers.values()))


def contents(names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Return each picture's name and bytes. Raises OSError if a file cannot be read."""
    for name in names:
        path = Path(name)
        if name == "-":
            yield name, sys.stdin.buffer.read()
        elif path.is_dir():
            files = (file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES)
            yield from ((str(file), file.read_bytes()) for file in files)
        else:
            yield name, path.read_bytes()


def answer(content: bytes, readers: list[Model]) -> dict:
    """Return what the models see in a picture, or why they see nothing."""
    try:
        image, found = digits.read(content, readers, Limits.pixels)
    except RequestError as error:
        return {"error": str(error)}
    return {"image": image.tolist(), "models": found}


def table(answers: dict[str, dict], readers: list[Model]) -> str:
    """Lay out each model's likeliest class, with its probability, or what is wrong with a picture."""
    rows = [["file", *(model.name for model in readers)]]
    for name, found in answers.items():
        if "error" in found:
            rows.append([name, found["error"]])
        else:
            each = found["models"].values()
            rows.append([name, *(f"{it['label']} {it['probabilities'][it['label']]:.1%}" for it in each)])
    widths = [max(len(row[column]) for row in rows if len(row) > 2 or column == 0) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
