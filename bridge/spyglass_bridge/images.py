"""The images of a conversation: parsing their sources, and sending the images that follow their Start.

Images are never decoded here. `openai/translation.py` decides which images travel inside the Start.
"""

import asyncio
import binascii
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from urllib.parse import unquote

from pydantic_core import from_json

from spyglass_bridge.errors import ApiError, invalid
from spyglass_bridge.fetch import FetchFailed, ImageFetcher
from spyglass_bridge.remote_generation import RemoteGeneration

# RFC 2397, in base64: data:[TYPE][;NAME=VALUE]...;base64,
_DATA_URI = re.compile(r"""data:([^;,"]*)(?:;[^;,="]+=(?:"[^"]*"|[^;,"]*))*;base64,""", re.IGNORECASE)
_MAX_DATA_URI_PREFIX = 1024
_PIECE_BYTES = 256 << 10
_ESCAPE_BYTES = 6
"""Length of the longest self-contained JSON escape."""
# The bytes determine an image's format; a type that claims something else is a mistake and is refused.
_TYPES = frozenset(("", "application/octet-stream", "image/gif", "image/jpeg", "image/jpg", "image/png", "image/webp"))
_BARE_BASE64 = {"/9j/": "jpeg", "iVBORw0KGg": "png", "UklGR": "webp", "R0lGOD": "gif"}
"""How the base64 of each image format begins."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """An image that came with the request. `param` is its path there."""

    data: bytes
    param: str


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image to be fetched. `param` is its path in the request."""

    url: str
    param: str


ImageSource = ImageData | ImageUrl
Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class AnnouncedImage:
    """An image that follows its Start. `index` is its place among all images of the conversation."""

    index: int
    source: ImageSource


def parse_image(url: str, param: str, max_bytes: int, raw: memoryview | None = None) -> ImageSource:
    """Parses the `url` of an image part: a data URI or a URL to fetch. Raises ApiError 400.

    `raw` is the whole URL, JSON-escaped, if it is long: it is read piece by piece, so that others get their turn.
    """
    pieces = _pieces(url) if raw is None else _raw_pieces(raw)
    beginning = next(pieces, "")
    if not beginning:
        raise invalid_image("The URL is empty: give an http(s) URL, or the image as data:image/png;base64,…", param)
    for start, name in _BARE_BASE64.items():
        if beginning.startswith(start):
            raise invalid_image(f"This is bare base64: put data:image/{name};base64, before it.", param)
    if beginning[:5].lower() != "data:":
        if next(pieces, None) is not None:
            raise invalid_image("The URL is too long.", param)
        return ImageUrl(beginning, param)
    prefix = _DATA_URI.match(beginning, 0, _MAX_DATA_URI_PREFIX)
    if prefix is None or prefix[1].strip().lower() not in _TYPES:
        message = "A data URI must begin with data:image/TYPE;base64, where TYPE is jpeg, png, webp or gif."
        raise invalid_image(message, param)
    data = _decode(chain([beginning[prefix.end() :]], pieces), param, max_bytes)
    if not data:
        raise invalid_image("The image is empty.", param)
    return ImageData(data, param)


def _pieces(text: str) -> Iterator[str]:
    for begin in range(0, len(text), _PIECE_BYTES):
        yield text[begin : begin + _PIECE_BYTES]


def _raw_pieces(raw: memoryview) -> Iterator[str]:
    """Yields the decoded pieces of a JSON string without its quotes. Raises ApiError 400."""
    begin = 0
    while begin < len(raw):
        end = min(begin + _PIECE_BYTES, len(raw))
        if end < len(raw):  # an escape is not cut
            place = bytes(raw[end - _ESCAPE_BYTES : end]).rfind(b"\\")
            end -= _ESCAPE_BYTES - place if place >= 0 else 0
        try:
            piece = from_json(b"".join((b'"', raw[begin:end], b'"')))
        except ValueError as error:
            raise invalid(f"The body is not valid JSON: {error}.") from None
        assert isinstance(piece, str)
        yield piece
        begin = end


def _decode(pieces: Iterable[str], param: str, max_bytes: int) -> bytes:
    """Decodes padded base64, and stops once the result is too large.

    The text may be percent-encoded, as in any URL, or broken into lines, as mail tools write it; other junk is refused.
    """
    rest, decoded, size = "", list[bytes](), 0
    try:
        for piece in _plain(pieces):
            rest += piece
            whole = max(0, len(rest) - 1) // 4 * 4  # the last four may have padding
            if "=" in rest[:whole]:
                raise ValueError
            decoded.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
            rest, size = rest[whole:], size + len(decoded[-1])
            if size > max_bytes:
                raise _too_large(param, max_bytes)
        # Strict mode still accepts excess padding.
        if len(rest) % 4 or rest.endswith("==="):
            raise ValueError
        decoded.append(binascii.a2b_base64(rest, strict_mode=True))
    except ValueError:
        raise invalid_image("The image is not valid base64.", param) from None
    if size + len(decoded[-1]) > max_bytes:
        raise _too_large(param, max_bytes)
    return b"".join(decoded)


def _plain(pieces: Iterable[str]) -> Iterator[str]:
    """Removes line breaks and percent-encoding."""
    cut = ""
    for piece in pieces:
        piece, cut = cut + piece, ""
        if "%" in piece:
            if (place := piece.rfind("%", max(0, len(piece) - 2))) >= 0:
                piece, cut = piece[:place], piece[place:]
            piece = unquote(piece, encoding="latin-1")
        yield piece.replace("\r", "").replace("\n", "")
    yield cut


def _too_large(param: str, max_bytes: int) -> ApiError:
    return invalid_image(f"The image is larger than {max_bytes} bytes.", param)


def invalid_image(message: str, param: str) -> ApiError:
    return invalid(message, param, code="invalid_image")


async def send_images(
    generation: RemoteGeneration, images: Sequence[AnnouncedImage], fetcher: ImageFetcher, tenant: Hashable
) -> bool:
    """Sends the images once the generation is accepted. Returns whether it started; if not, it has ended.

    Raises ApiError when an image cannot be fetched.
    """
    if not images:
        return await generation.wait_started()
    sending = asyncio.create_task(_send_when_accepted(generation, images, partial(fetcher.fetch, tenant=tenant)))
    waiting = asyncio.create_task(generation.wait_started())
    try:
        await asyncio.wait((sending, waiting), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        return await waiting
    finally:
        sending.cancel()
        waiting.cancel()
        await asyncio.gather(sending, waiting, return_exceptions=True)


async def _send_when_accepted(generation: RemoteGeneration, images: Sequence[AnnouncedImage], fetch: Fetch) -> None:
    if not await generation.wait_accepted():
        return
    try:
        async with asyncio.TaskGroup() as group:
            for image in images:
                group.create_task(_send(generation, image, fetch))
    except* ApiError as errors:
        raise errors.exceptions[0] from None


async def _send(generation: RemoteGeneration, image: AnnouncedImage, fetch: Fetch) -> None:
    if isinstance(image.source, ImageData):
        data = image.source.data
    else:
        try:
            data = await fetch(image.source.url)
        except FetchFailed as error:
            raise invalid_image(str(error), image.source.param) from error
    generation.send_image(image.index, data)
