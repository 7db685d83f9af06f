"""Errors whose text is meant for the user, in one line."""


def one_line(error: Exception) -> str:
    """Return the text of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class StartError(Exception):
    """The server or the command-line classifier cannot start with its arguments, models or files."""


class RequestError(Exception):
    """A request is invalid or exceeds a limit; the text is sent to the client with this HTTP status."""

    def __init__(self, message: str, status: int = 400):
        """Store the error's text and its HTTP status, 4xx or 5xx."""
        super().__init__(message)
        self.status = status
