"""Panics of libraries that are written in Rust.

They reach Python as an exception that is no Exception, so that nobody who handles errors sees them.
"""

import contextlib
from collections.abc import Iterator

_MODULE = "pyo3_runtime"
"""Where they come from; it cannot be imported."""


class LibraryPanicked(ValueError):
    """A library could not cope with what it was given; what it says about that is for the log."""

    def __init__(self) -> None:
        super().__init__("it cannot be read")


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Around calls of a library, as a decorator too: its panics are raised as LibraryPanicked."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ == _MODULE:
            raise LibraryPanicked from error
        raise
