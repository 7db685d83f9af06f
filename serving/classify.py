"""Read the digits in pictures: `python -m serving.classify --help`."""

import argparse
import os
import signal
import sys
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
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` takes what it wants, and that is that
    try:
        readers = [model for model in models.load(given.repository).values() if digits.suits(model)]
        names = pictures(given.files)
    except (OSError, StartError) as error:
        sys.exit(f"classify: {error}")
    answers = []
    for name in names:
        answers.append((printable(name), answer(name, readers)))
        if given.json:
            file, found = answers[-1]
            print(orjson.dumps({"file": file} | found).decode(), flush=True)
    if not given.json:
        print(table(answers, readers))
    sys.exit(any("error" in found for _, found in answers))


def pictures(names: list[str]) -> list[str]:
    """Return the files' names, instead of a folder's those of its pictures. Raises StartError if it has none."""
    found = []
    for name in names:
        if not Path(name).is_dir():
            found.append(name)
            continue
        files = [str(file) for file in sorted(Path(name).iterdir()) if file.suffix.lower() in SUFFIXES]
        if not files:
            raise StartError(f"{name} has no pictures; allowed: {', '.join(sorted(SUFFIXES))}")
        found += files
    return found


def printable(name: str) -> str:
    """Return a file's name, which need not be text, as text of one line."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def answer(name: str, readers: list[Model]) -> dict:
    """Return what the models see in a picture, or why they see nothing."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        image, found = digits.read(content, readers, Limits.pixels)
    except OSError as error:
        return {"error": f"cannot be read: {error.strerror}"}
    except RequestError as error:
        return {"error": str(error)}
    return {"image": image.tolist(), "models": found}


def table(answers: list[tuple[str, dict]], readers: list[Model]) -> str:
    """Lay out each model's likeliest class, with its probability, or what is wrong with a picture."""
    rows = [["file", *(model.name for model in readers)], *([name, *cells(found)] for name, found in answers)]
    widths = [max(len(name) for name, *_ in rows)]
    widths += [max(len(model.name), *(len(f"{label} 100.0%") for label in model.classes)) for model in readers]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def cells(found: dict) -> list[str]:
    """Return what a picture's row has behind its name."""
    if "error" in found:
        return [found["error"]]
    return [f"{it['label']} {it['probabilities'][it['label']]:.1%}" for it in found["models"].values()]


if __name__ == "__main__":
    main()
