"""Accuracy with its confidence interval."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest


class Accuracy(TypedDict):
    """The accuracy, its 95 % confidence interval, and the counts behind it."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    errors: int
    samples: int


def accuracy_with_interval(correct: NDArray[np.bool_]) -> Accuracy:
    """Return the accuracy of predictions that are correct or not, bool [n], with Wilson's 95 % interval."""
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "errors": int((~correct).sum()),
        "samples": len(correct),
    }
