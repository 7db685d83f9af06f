"""The exception that a user's mistake raises, and the text of others in one line."""


class UserError(Exception):
    """A mistake that the user can mend; its text names what is wrong and what is allowed, a line for each."""


def one_line(error: Exception) -> str:
    """Return the error's text with its line breaks folded."""
    return " ".join(str(error).split())
