"""Checks of what is on this machine against what the commit promises."""
