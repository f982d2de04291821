"""Large bodies: their images are set aside before the JSON is parsed.

A parser reads a 60 MB string in one go, stalling every stream of this process. Apart from images, no string of a
request may be that long, since no context can hold it. What remains is thus either short enough to parse at once or
refused; images are decoded piece by piece.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from spyglass_bridge.body import LargeBody
from spyglass_bridge.errors import ApiError
from spyglass_common.limits import MAX_START_BYTES

_MAX_REST_BYTES = MAX_START_BYTES // 2 * 3
"""Maximum bytes of a body besides its images: more than any Start holds, and few enough to parse at once."""
_LONG_BYTES = 16 << 10
_MAX_PICTURES = 4096
_KEY = b'"image_url"'
_URL = re.compile(rb'"image_url"\s*:\s*\{\s*(?:"detail"\s*:\s*(?:"\w{0,8}"|null)\s*,\s*)?"url"\s*:\s*"')
_MAX_ESCAPED_QUOTES = 16
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class SetAside:
    """Long image URLs as they appear in a body, escaped, keyed by the placeholders that replace them."""

    urls: Mapping[str, memoryview] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def find(self, url: str) -> memoryview | None:
        """Returns the long URL that this placeholder replaces, if any."""
        found = self.urls.get(url)
        if found is not None:
            self.used.add(url)
        return found

    @property
    def all_used(self) -> bool:
        """Whether all placeholders were found where images belong."""
        return len(self.used) == len(self.urls)


def set_aside(body: LargeBody) -> tuple[bytes, SetAside]:
    """Cuts the long image URLs out of a body. Raises ApiError 400 if the rest is too large."""
    view, name = body.view(), secrets.token_hex(8)
    urls: dict[str, memoryview] = {}
    rest: list[bytes | memoryview] = []
    kept, at = 0, _find(body, _KEY, 0)
    for _ in range(_MAX_PICTURES):
        if at < 0:
            break
        if found := _URL.match(view, at):
            begin, end = found.end(), _end_of_string(body, found.end())
            if end - begin > _LONG_BYTES:
                placeholder = f"{name}-{len(urls)}"
                urls[placeholder] = view[begin:end]
                rest += [view[kept:begin], placeholder.encode()]
                kept = at = end
        at = _find(body, _KEY, at + 1)
    check_rest(sum(map(len, rest)) + body.size - kept)
    return b"".join([*rest, view[kept:]]), SetAside(urls)


def check_rest(num_bytes: int) -> None:
    """Raises ApiError 400 if `num_bytes`, the size of a body without its images, exceeds the limit."""
    if num_bytes > _MAX_REST_BYTES:
        message = f"This model's maximum context length is smaller than that: the texts take {num_bytes} bytes."
        raise ApiError(400, message, code="context_length_exceeded")


def _end_of_string(body: LargeBody, begin: int) -> int:
    """Returns the position of the quote that ends a string; `begin` if the string is not an image URL."""
    end = begin
    for _ in range(_MAX_ESCAPED_QUOTES):
        end = _find(body, b'"', end)
        if end < 0:
            break
        before = body.memory[max(begin, end - _MAX_ESCAPED_QUOTES) : end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end
        end += 1
    return begin


def _find(body: LargeBody, what: bytes, begin: int) -> int:
    """Returns the next position of `what`, or -1; searches in pieces, so that other threads get their turn."""
    for start in range(begin, body.size, _PIECE_BYTES):
        end = min(start + _PIECE_BYTES + len(what) - 1, body.size)
        if (found := body.memory.find(what, start, end)) >= 0:
            return found
    return -1
