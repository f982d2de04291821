"""Errors in making the demo checkpoint."""


class DemoError(RuntimeError):
    """The demo checkpoint cannot be made. The message is for users and says what to do about it."""
