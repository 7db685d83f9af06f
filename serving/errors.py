"""What users do wrong, before and while the server runs."""


class StartError(Exception):
    """Nothing can be served; the text says why, in one line."""


class RequestError(Exception):
    """A request that cannot be answered; the text says what is wrong and what is allowed."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status
