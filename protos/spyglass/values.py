"""The kinds of values that options take: each is read from text and checked.

Owns what is said of a value that is none of its kind. Knows no option.
"""

import argparse
from collections.abc import Callable


def address(text: str) -> str:
    """Checks HOST:PORT ([HOST]:PORT for IPv6) or unix:PATH and returns it as it is."""
    if text.startswith("unix:") and len(text) > 5:
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT or unix:PATH")
    return text


def positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def non_negative_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def positive_float(text: str) -> float:
    number = non_negative_float(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    return parse
