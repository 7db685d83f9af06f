"""Checks of the workspace against the commit, and what `make repro` prints and removes."""
