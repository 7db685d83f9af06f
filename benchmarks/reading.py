"""Measure how many digits and numbers are read in pictures of MNIST's test digits, and of letters and shapes.

Each picture is drawn from a seed of its own, under one condition of benchmarks/handwriting.py: a number of 1 to 10
digits, two of them, or a pair of touching digits. Texts are aligned by edit distance: a digit is refused if the text
has `?` in its place, and wrong if it has another digit there; if it is missing, it is refused if the text has a `?`
elsewhere, else wrong. A number is refused if its text has a `?`, and wrong if it differs in another way, such as by a
digit too many. A letter or shape is read if a part has a label.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.drawings import draw_letter, draw_shape
from benchmarks.handwriting import CONDITIONS, Writer
from serving import models
from serving.errors import RequestError, StartError
from serving.models import Model
from serving.reading import UNREAD, read_image
from stages import artifacts, dataset, params
from stages.dataset import Split
from stages.errors import UserError

NO_DIGITS = {"letters": draw_letter, "shapes": draw_shape}
RIGHT, WRONG, REFUSED = OUTCOMES = ("right", "wrong", "refused")

Drawing = Callable[[Generator], NDArray[np.uint8]]


@dataclass
class Results:
    """How many digits and numbers of a condition had each outcome."""

    digits: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, expected: list[str], read: list[str]) -> None:
        """Count one picture's lines."""
        outcomes = digit_outcomes("\n".join(expected), "\n".join(read))
        self.digits.update(outcomes)
        for number in range(len(expected)):
            text = read[number] if len(read) == len(expected) else "\n".join(read)
            is_refused = UNREAD in text or not read
            self.numbers[RIGHT if text == expected[number] else REFUSED if is_refused else WRONG] += 1


def main() -> None:
    options = parse_options()
    try:
        load = dataset.load_training_set if options.training else dataset.load_test_set
        split = load(params.load_params().data)
        classifiers = list(models.load_models(artifacts.MODEL_REPOSITORY).values())
    except (StartError, UserError) as error:
        sys.exit(f"reading: {error}")
    results = {name: measure(name, options.pictures, split, classifiers) for name in CONDITIONS}
    print(results_table(results))
    for name, draw in NO_DIGITS.items():
        print(f"\n{name} that are read as digits: {read_share(draw, options.pictures, classifiers):.1%}")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200, help="pictures per condition (default: %(default)s)")
    parser.add_argument(
        "--training", action="store_true", help="draw with training digits: to develop with, not to report"
    )
    return parser.parse_args()


def measure(condition: str, pictures: int, split: Split, classifiers: list[Model]) -> Results:
    """Draw and read pictures of one condition."""
    results = Results()
    images, labels = split.images[:, 0].numpy(), split.labels.numpy()
    for seed in tqdm(range(pictures), desc=condition, unit="picture", leave=False, disable=None):
        writer = Writer(np.random.default_rng(seed), images, labels)
        picture = CONDITIONS[condition](writer, int(writer.random.integers(1, 11)))
        results.add(writer.text, read_lines(picture, classifiers))
    return results


def read_share(draw: Drawing, pictures: int, classifiers: list[Model]) -> float:
    """Return the share of drawings that are read as digits, though they show none."""
    texts = ["".join(read_lines(draw(np.random.default_rng(seed)), classifiers)) for seed in range(pictures)]
    return sum(bool(text.strip(UNREAD)) for text in texts) / pictures


def read_lines(picture: NDArray[np.uint8], classifiers: list[Model]) -> list[str]:
    """Return the texts of the lines in a picture; none if it is refused."""
    try:
        lines = read_image(Image.fromarray(picture).convert("RGB"), picture.shape[::-1], classifiers)
    except RequestError:
        return []
    return [line["text"] for line in lines]


def digit_outcomes(expected: str, read: str) -> Counter[str]:
    """Count the expected digits by outcome, in an alignment of both texts with the fewest differences."""
    # Each cell has the differences so far and the outcomes, for a prefix of `expected` and one of `read`.
    row = [(column, Counter[str]()) for column in range(len(read) + 1)]
    for index, digit in enumerate(expected, start=1):
        counted = digit != "\n"
        missing = Counter({WRONG if read and UNREAD not in read else REFUSED: int(counted)})
        cells = [(index, row[0][1] + missing)]
        for column, found in enumerate(read, start=1):
            outcome = RIGHT if found == digit else REFUSED if found == UNREAD else WRONG
            cost, counts = row[column - 1]
            options = [
                (cost + (outcome != RIGHT), counts + Counter({outcome: int(counted)})),
                (row[column][0] + 1, row[column][1] + missing),
                (cells[-1][0] + 1, cells[-1][1]),
            ]
            cells.append(min(options, key=lambda option: option[0]))
        row = cells
    return row[-1][1]


def results_table(results: dict[str, Results]) -> str:
    """Return a Markdown table of the shares of digits and of numbers."""
    header = ["condition", *(f"{kind} {outcome}" for kind in ("digits", "numbers") for outcome in OUTCOMES)]
    rows = [header, ["---"] * len(header)]
    for name, result in results.items():
        shares = [counts[each] / counts.total() for counts in (result.digits, result.numbers) for each in OUTCOMES]
        rows.append([name, *(f"{share:.1%}" for share in shares)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
