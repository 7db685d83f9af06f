"""Comparisons and searches of hyperparameters, as DVC experiments."""
