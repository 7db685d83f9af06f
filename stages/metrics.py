"""Accuracy, with its interval."""

import numpy as np
from scipy.stats import binomtest


def accuracy(correct: np.ndarray) -> dict[str, float]:
    """Return the share of right answers among bool [n], its interval (Wilson's, at 95 %), and the counts."""
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "errors": int((~correct).sum()),
        "samples": len(correct),
    }
