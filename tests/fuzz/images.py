"""Pictures: whatever the bytes, there are tiles or a refusal, and the processes that decode live on."""

import io
import itertools
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fuzz.background import background
from fuzz.mutations import mutated
from fuzz.target import property_target
from spyglass_server.errors import InvalidImage
from spyglass_server.image_decoder import ImageDecoder
from spyglass_server.images import ImageSpec, ImageTiles

_SPEC = ImageSpec(tile_size=28, max_tiles=4)
_MAX_PIXELS = 4 << 20
_MAX_S = 20.0
"""Twice the time that the decoder gives a picture: other programs may run beside."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _pictures() -> list[bytes]:
    """Small pictures of every format, with what each can have."""
    values = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA")
    plain, frames = image.convert("RGB"), [image.convert("RGB").rotate(90 * turn) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    several = {"save_all": True, "append_images": frames}
    grey = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    return [
        _encode(plain, "JPEG"),
        _encode(plain, "JPEG", progressive=True, exif=exif, icc_profile=b"\0" * 200),
        _encode(plain.convert("CMYK"), "JPEG", subsampling=2),
        _encode(plain.convert("L"), "JPEG", optimize=True),
        _encode(image, "PNG", icc_profile=b"\0" * 200, dpi=(72, 72), exif=exif),
        _encode(plain.convert("P"), "PNG", transparency=3),
        _encode(plain.convert("1"), "PNG"),
        _encode(grey, "PNG"),
        _encode(plain, "PNG", **several),
        _encode(plain, "WEBP"),
        _encode(image, "WEBP", lossless=True, exif=exif.tobytes(), icc_profile=b"\0" * 200),
        _encode(image, "WEBP", **several),
        _encode(plain, "GIF", **several, loop=0, transparency=1),
        _encode(plain, "BMP"),
    ]


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of a PNG's chunks."""
    found, at = [], len(_SIGNATURE)
    while at + 8 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += size + 12
    return found


@st.composite
def _png(draw: st.DrawFn, pictures: list[bytes]) -> bytes:
    """A PNG with a fault in a chunk, or in its pixels, whose checksums are right: else no decoder reads on."""
    chunks = _chunks(draw(st.sampled_from([data for data in pictures if data.startswith(_SIGNATURE)])))
    at = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[at]
    if kind == b"IDAT" and draw(st.booleans()):
        content = zlib.compress(draw(mutated([zlib.decompress(content)])), 1)
    else:
        content = draw(mutated([content, b"\0" * 13]))
    kind = draw(st.sampled_from([kind, kind, kind, b"tRNS", b"PLTE", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL"]))
    chunks[at] = kind, content
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@contextmanager
def _opened() -> Iterator[Callable[[bytes], str]]:
    good = _encode(Image.new("RGB", (40, 30), "red"), "PNG")
    tenants = itertools.count()
    decoder = ImageDecoder(_MAX_PIXELS)

    async def decode(data: bytes) -> ImageTiles:  # nothing that another has had decoded is kept for a tenant
        return await decoder.tiles(data, _SPEC, tenant=f"tenant-{next(tenants)}", field="image")

    with background() as loop:

        def check(data: bytes) -> str:
            began = time.monotonic()
            try:
                tiles = loop.run(decode(data))
            except InvalidImage as refusal:
                assert refusal.field == "image"
                outcome = refusal.message
                if "too much time" in outcome:  # a process has ended, or was ended
                    assert loop.run(decode(good)).pixels.any()
                # Numbers are the picture's own, and would make every refusal another.
                outcome = "".join("#" if character.isdigit() else character for character in outcome)
                outcome = outcome.replace("##", "#").replace("##", "#").replace("##", "#")
            else:
                outcome = f"{tiles.columns} x {tiles.rows} tiles"
                assert tiles.rows * tiles.columns <= _SPEC.max_tiles
                assert 0 < tiles.width <= tiles.columns * _SPEC.tile_size
                assert 0 < tiles.height <= tiles.rows * _SPEC.tile_size
                assert tiles.pixels.dtype == np.uint8
                assert tiles.pixels.shape == (tiles.rows * tiles.columns, 3, _SPEC.tile_size, _SPEC.tile_size)
            assert time.monotonic() - began < _MAX_S
            return outcome

        try:
            yield check
            assert loop.run(decode(good)).pixels.any()
        finally:
            decoder.close()


PICTURES = _pictures()
IMAGES = property_target(
    "images", mutated(PICTURES) | _png(PICTURES) | st.binary(max_size=200), _opened, batch_size=2000, smoke_size=150
)
