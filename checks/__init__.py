"""Checks of the workspace against the commit, the results that `make repro` prints, and the removal of old models."""
