"""The histogram of the differences between two models' probabilities."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def draw_differences(differences: NDArray[np.floating], between: str, tolerance: float | None = None) -> Figure:
    """Draw a histogram of each image's maximum difference in a probability, float [n]."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.logspace(-9, 0, 91)  # a logarithmic scale has no 0, so equal probabilities count in the first bin
    axes.hist(np.clip(np.nan_to_num(differences, nan=1.0), bins[0], bins[-1]), bins=bins.tolist())
    if tolerance is not None:
        axes.axvline(tolerance, color="black", linestyle="dashed", label=f"tolerance {tolerance}")
        axes.legend()
    axes.set(xscale="log", xlabel=f"maximum difference of a probability, {between}", ylabel="images")
    return figure
