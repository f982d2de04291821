"""Panics of libraries that are written in Rust.

They reach Python as a BaseException that is not an Exception, so ordinary error handlers do not catch them.
"""

import contextlib
from collections.abc import Iterator

_MODULE = "pyo3_runtime"
"""The module of their class; it cannot be imported."""


class LibraryPanicked(ValueError):
    """A library could not handle its input; its own message is for the log."""

    def __init__(self) -> None:
        super().__init__("it cannot be read")


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises panics of the library calls inside as LibraryPanicked; also usable as a decorator."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ == _MODULE:
            raise LibraryPanicked from error
        raise
