"""The exception for users' mistakes, and error texts in one line."""


class UserError(Exception):
    """A mistake that the user can fix; each line of its text says what was expected, what was found, and where."""


def one_line(error: Exception) -> str:
    """Return the error's text with its line breaks replaced by spaces."""
    return " ".join(str(error).split())
