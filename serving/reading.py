"""Read the numbers in a picture: of all divisions into digits, choose the one that the models find most probable.

Over-segmentation and the best path through its graph follow LeCun et al., "Gradient-based learning applied to document
recognition" (1998), section V.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.cleaning import clean
from serving.digits import IMAGE_SIDE, normalize_digit
from serving.errors import RequestError
from serving.ink import Gray, Ink, extract_ink, is_light_on_dark, stroke_width
from serving.limits import MAX_CANDIDATE_PIXELS
from serving.models import Model
from serving.pictures import decode_picture
from serving.segmentation import Pieces, find_pieces

cv2.setNumThreads(1)  # the server reads pictures in parallel

UNREAD = "?"  # in the text, for a digit without a label
MIN_HEIGHT = 0.35  # fraction of the line's height; smaller candidates are no digits
MAX_DIGIT_PIECES = 16  # into which one digit may be broken and cut
MAX_WIDTH = 1.4  # times the line's height; wider candidates are several digits
MAX_GAP = 0.12  # fraction of the line's height between pieces of one digit
SKIP_PROBABILITY = 0.6  # that a small component, such as a dot, belongs to no digit
CUT_PROBABILITY = 0.5  # that a component holds several digits, if its aspect ratio doesn't tell
CUT_ASPECT = 1.15  # width / height of a component that holds one digit or several
ASPECT_SLOPE = 4  # of the logarithm of the odds between both
BATCH_SIZE = 256  # images
MAX_TEXT_STROKE = 0.1  # mean stroke width as a fraction of the picture's shorter side; wider ink may be a desk
EMPTY_PROBABILITY = 0.05  # of each class, for a shape without strokes

Probabilities = npt.NDArray[np.float32]
Line = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A run of pieces that may be one digit."""

    start: int  # of the pieces [start, stop)
    stop: int
    box: tuple[int, int, int, int]  # left, top, right, bottom, after rotation
    image: Gray  # [28, 28]; empty if there are no strokes
    penalty: float  # of its shape, added to the logarithm of the probability


def read_picture(content: bytes, models: Iterable[Model], max_pixels: int) -> dict[str, Any]:
    """Return the lines of text in a picture, each with its digits' boxes, images and predictions. Raises RequestError.

    docs/serving.md describes the answer.
    """
    return {"lines": read_image(*decode_picture(content, max_pixels), models)}


def read_image(picture: Image.Image, size: tuple[int, int], models: Iterable[Model]) -> list[Line]:
    """Return the lines of text in an RGB picture, with boxes for a picture of this size. Raises RequestError."""
    classifiers = digit_classifiers(models)
    pixels = np.asarray(picture)
    pixels = ~pixels if is_light_on_dark(pixels) else pixels
    ink = extract_ink(pixels, size)
    lines: list[Line] = []
    error: RequestError | None = None
    try:
        lines = read_ink(ink, classifiers)
    except RequestError as caught:
        error = caught
    is_read = lines and all(UNREAD not in line["text"] for line in lines)
    if not is_read and stroke_width(ink.mask) > MAX_TEXT_STROKE * min(ink.mask.shape):
        with contextlib.suppress(RequestError):  # a sheet on a desk may have been taken for ink
            inverse = read_ink(extract_ink(~pixels, size), classifiers)
            lines = inverse if count_labels(inverse) > max(1, count_labels(lines)) else lines
    if error and not lines:
        raise error
    return lines


def count_labels(lines: list[Line]) -> int:
    """Return the number of digits that have a label, minus that of those that have none."""
    text = "".join(line["text"] for line in lines)
    return len(text) - 2 * text.count(UNREAD)


def read_ink(ink: Ink, classifiers: list[Model]) -> list[Line]:
    """Return the lines of text in ink. Raises RequestError if it has none, or too much to read."""
    ink = clean(ink)
    pieces = find_pieces(ink.mask)
    candidates = list(find_candidates(pieces, ink))
    images = np.stack([candidate.image for candidate in candidates])[:, None]
    probabilities = np.stack([classify(images, model) for model in classifiers])
    mean = probabilities.mean(axis=0)  # soft voting
    mean[~images.any(axis=(1, 2, 3))] = EMPTY_PROBABILITY
    lines: list[list[Any]] = [[] for _ in range(pieces.lines[-1] + 1)]
    for index in best_path(candidates, mean.max(axis=1), pieces):
        candidate = candidates[index]
        digit = describe_digit(candidate.image, mean[index], probabilities[:, index], classifiers)
        digit["box"] = picture_box(candidate.box, ink)
        lines[pieces.lines[candidate.start]].append(digit)
    if not any(lines):
        raise RequestError("picture: expected digits, got only dots and strokes", 422)
    return [describe_line(digits) for digits in lines if digits]


def digit_classifiers(models: Iterable[Model]) -> list[Model]:
    """Return the digit classifiers whose classes are those of the first. Raises RequestError if there is none."""
    classifiers = [model for model in models if is_digit_classifier(model)]
    if not classifiers:
        raise RequestError("models: expected one that classifies digits, got none", 404)
    return [model for model in classifiers if classes(model) == classes(classifiers[0])]


def is_digit_classifier(model: Model) -> bool:
    """Say whether the model takes one image as MNIST has it, and returns the probability of each labelled class."""
    image, probabilities = model.inputs.get("image"), model.outputs.get("probabilities")
    return bool(
        image
        and len(model.inputs) == 1
        and (image.datatype, image.shape) == ("UINT8", (-1, 1, IMAGE_SIDE, IMAGE_SIDE))
        and probabilities
        and probabilities.shape == (-1, len(classes(model)))
    )


def classes(model: Model) -> tuple[str, ...]:
    """Return the names of a digit classifier's classes."""
    return model.labels.get("probabilities", ())


def classify(images: Gray, model: Model) -> Probabilities:
    """Return a model's probabilities, [n, classes], in batches that need little memory."""
    batches = np.array_split(images, math.ceil(len(images) / BATCH_SIZE))
    return np.concatenate([model.run({"image": batch})["probabilities"] for batch in batches])


def find_candidates(pieces: Pieces, ink: Ink) -> Iterator[Candidate]:
    """Yield runs of pieces of one component, and of whole neighboring components in a line.

    Raises RequestError if they have too many pixels, as strokes that overlap in columns do.
    """
    count, pixels = len(pieces.boxes), 0
    is_border = np.append(True, np.append(np.diff(pieces.components) != 0, True))  # before and after each piece
    for start in range(count):
        height = pieces.heights[start]
        for stop in range(start + 1, min(start + MAX_DIGIT_PIECES, count) + 1):
            boxes = pieces.boxes[start:stop]
            (left, top, _, _), (_, _, right, bottom) = boxes.min(axis=0).tolist(), boxes.max(axis=0).tolist()
            gap = boxes[-1, 0] - boxes[:-1, 2].max(initial=left)
            one_component = pieces.components[start] == pieces.components[stop - 1]
            whole = bool(is_border[start] and is_border[stop])
            if pieces.lines[start] != pieces.lines[stop - 1] or gap > MAX_GAP * height:
                break
            if right - left > MAX_WIDTH * height and not (whole and one_component):
                continue
            tallest = (boxes[:, 3] - boxes[:, 1]).max()  # two dots above each other are no digit
            if (bottom - top if one_component else tallest) < MIN_HEIGHT * height or not (whole or one_component):
                continue
            pixels += (bottom - top) * (right - left)
            if pixels > MAX_CANDIDATE_PIXELS:
                raise RequestError("picture: expected digits side by side, got too many strokes above each other", 422)
            area = slice(top, bottom), slice(left, right)
            labels = pieces.labels[area]
            mask = ((labels > start) & (labels <= stop)).astype(np.uint8)
            cuts = 2 - int(is_border[start]) - int(is_border[stop])
            penalty = log_probability((CUT_ASPECT - (right - left) / max(height, bottom - top)) * ASPECT_SLOPE)
            penalty += cuts / 2 * math.log(CUT_PROBABILITY)
            penalty += cuts / 2 * log_probability((pieces.widths[start] / height - CUT_ASPECT) * ASPECT_SLOPE)
            image = normalize_digit(ink.gray[area], mask, ink.noise)
            yield Candidate(start, stop, (left, top, right, bottom), image, penalty)


def log_probability(log_odds: float) -> float:
    """Return the logarithm of the logistic function."""
    return -float(np.logaddexp(0, -log_odds))


def best_path(candidates: list[Candidate], confidence: Probabilities, pieces: Pieces) -> list[int]:
    """Return the indices of the candidates that divide all pieces most probably; small components may be left out.

    `confidence` is the maximum probability of each candidate, [candidates].
    """
    small = pieces.boxes[:, 3] - pieces.boxes[:, 1] < MIN_HEIGHT * pieces.heights
    scores = np.append(0, np.full(len(small), -np.inf))  # of the best path to each piece
    paths: list[list[int]] = [[] for _ in scores]
    by_stop = defaultdict(list)
    for index, candidate in enumerate(candidates):
        by_stop[candidate.stop].append((index, candidate))
    for stop in range(1, len(scores)):
        if small[stop - 1]:
            scores[stop], paths[stop] = scores[stop - 1] + math.log(SKIP_PROBABILITY), paths[stop - 1]
        for index, candidate in by_stop[stop]:
            score = scores[candidate.start] + math.log(confidence[index]) + candidate.penalty
            if score > scores[stop]:
                scores[stop], paths[stop] = score, [*paths[candidate.start], index]
    return paths[-1]


def describe_line(digits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a line of text, whose confidence is the product of its digits'."""
    text = "".join(digit["label"] or UNREAD for digit in digits)
    return {"text": text, "confidence": math.prod(digit["confidence"] for digit in digits), "digits": digits}


def describe_digit(
    image: Gray, mean: Probabilities, probabilities: Probabilities, classifiers: list[Model]
) -> dict[str, Any]:
    """Return a digit's label, confidence, image and each model's prediction, or the reason why it has no label.

    `mean`, [classes], is that of the models' probabilities, [models, classes].
    """
    labels = classes(classifiers[0])
    models = {}
    for model, values in zip(classifiers, probabilities):
        label = labels[values.argmax()] if entropy(values) <= model.max_entropy else None
        models[model.name] = {"label": label, "probabilities": dict(zip(labels, values.tolist()))}
    answer: dict[str, Any] = {"label": labels[mean.argmax()], "confidence": float(mean.max())}
    if not image.any():
        answer = {"label": None, "reason": "a filled shape without strokes", "confidence": 0.0}
    elif entropy(mean) > np.mean([model.max_entropy for model in classifiers]):
        answer |= {"label": None, "reason": "no digit: the models are uncertain (entropy above their maximum)"}
    return answer | {"image": image.tolist(), "models": models}


def entropy(probabilities: Probabilities) -> float:
    """Return the entropy of the classes' probabilities in nats: 0 if one is certain, log(classes) if all are equal."""
    positive = probabilities[probabilities > 0]
    return -float(positive @ np.log(positive))


def picture_box(box: tuple[int, int, int, int], ink: Ink) -> dict[str, int]:
    """Return the box in the upright picture's pixels, around the rotated one: `left`, `top`, `width`, `height`."""
    left, top, right, bottom = box
    corners = np.array([[(left, top), (right, top), (left, bottom), (right, bottom)]], float)
    corners = cv2.transform(corners, cv2.invertAffineTransform(ink.transform))[0].clip(0, ink.size)
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    return {"left": int(left), "top": int(top), "width": int(right - left), "height": int(bottom - top)}
