"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake that the user can mend; its text names what is wrong and what is allowed, a line for each."""
