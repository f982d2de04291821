"""What can go wrong when the embedded model is prepared."""


class DemoError(Exception):
    """The embedded model cannot be made; the message says why and what to do, in words for a user."""
