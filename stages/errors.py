"""The exception that is shown to the user without a traceback, and error texts in one line."""


class UserError(Exception):
    """An error that the user can understand and fix without a traceback, mostly as `where: expected …, got …`."""


def one_line(error: Exception) -> str:
    """Return the error's text with its line breaks replaced by spaces."""
    return " ".join(str(error).split())
