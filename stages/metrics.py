"""Accuracy with its confidence interval, and calibration of the confidence."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

CALIBRATION_BINS = 15


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


def calibration_error(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Confidence, float32 [n], is the probability of the predicted class. Each bin adds size / n *
    |accuracy - mean confidence|, which is |sum(correct - confidence)| / n.
    """
    gaps = np.bincount(calibration_bins(confidence), weights=correct - confidence.astype(np.float64))
    return float(np.abs(gaps).sum() / len(correct))


def calibration_bins(confidence: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of each confidence from 0 to 1, int64 [n]."""
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
