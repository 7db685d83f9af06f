"""A picture of how far two models differ."""

import numpy as np
from matplotlib.figure import Figure


def draw(differences: np.ndarray, between: str, tolerance: float | None = None) -> Figure:
    """Draw how many images differ by how much, float [n], in the probability that differs most."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.logspace(-9, 0, 91)  # equal to the last bit counts as the first, for a logarithmic scale has no 0
    axes.hist(np.clip(np.nan_to_num(differences, nan=1.0), bins[0], bins[-1]), bins=bins)
    if tolerance is not None:
        axes.axvline(tolerance, color="black", linestyle="dashed", label=f"tolerance {tolerance}")
        axes.legend()
    axes.set(xscale="log", xlabel=f"largest difference of a probability, {between}", ylabel="images")
    return figure
