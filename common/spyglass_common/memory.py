"""Memory that is free goes back to the system: a big request, or what loading took, is not remembered."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def return_large_blocks() -> None:
    """For this process, where its C library is GNU's, which would keep blocks as large as those it has freed before."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_free_memory() -> None:
    """Gives back what lies between blocks that are used, which GNU's C library would keep."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
