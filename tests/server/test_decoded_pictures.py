"""Decoded pictures are kept for the next question about them, within bounds."""

import io
from collections.abc import AsyncIterator

import numpy as np
import pytest
from PIL import Image

from spyglass_server.decoded_pictures import DecodedPictures, Key
from spyglass_server.errors import InvalidImage
from spyglass_server.image_decoder import ImageDecoder
from spyglass_server.images import ImageSpec, ImageTiles

SPEC = ImageSpec(tile_size=28, max_tiles=4)
ONE_TILE = 3 * 28 * 28


def tiles(count: int = 1) -> ImageTiles:
    pixels = np.zeros((count, 3, 28, 28), np.uint8)
    return ImageTiles(rows=1, columns=count, width=28 * count, height=28, pixels=pixels, digest=b"")


def key(tenant: str, name: int) -> Key:
    return tenant, bytes([name]), SPEC


@pytest.fixture
async def decoder() -> AsyncIterator[ImageDecoder]:
    one = ImageDecoder(max_pixels=10_000)
    yield one
    one.close()


def test_those_that_were_needed_longest_ago_make_room() -> None:
    kept = DecodedPictures(max_bytes=8 * ONE_TILE)
    for name in range(3):
        kept.keep(key("a", name), tiles())
    assert kept.find(key("a", 0)) is not None
    for name in range(3, 5):
        kept.keep(key("a", name), tiles())
    assert [name for name in range(5) if kept.find(key("a", name))] == [0, 2, 3, 4]
    assert kept.num_bytes == 4 * ONE_TILE


def test_a_tenant_has_half_and_never_anothers() -> None:
    kept = DecodedPictures(max_bytes=4 * ONE_TILE)
    kept.keep(key("a", 1), tiles())
    for name in range(9):
        kept.keep(key("b", name), tiles())
    assert kept.find(key("a", 1)) is not None
    assert kept.find(key("a", 2)) is None
    assert [name for name in range(9) if kept.find(key("b", name))] == [7, 8]
    kept.keep(key("b", 1), tiles(4))
    assert kept.find(key("b", 1)) is None, "it is more than there is for one tenant"
    for tenant in "cdef":
        kept.keep(key(tenant, 1), tiles(2))
    assert kept.num_bytes <= 4 * ONE_TILE


async def test_a_picture_that_comes_again_is_not_decoded_again(decoder: ImageDecoder) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((60, 50), 90).convert("RGB").save(buffer, "PNG")
    first = await decoder.tiles(buffer.getvalue(), SPEC, tenant="a", field="image")
    decoder.close()  # nothing can be decoded any more
    again = await decoder.tiles(buffer.getvalue(), SPEC, tenant="a", field="image")
    assert again is first
    with pytest.raises(Exception, match=r"not active|schedule|stopped"):
        await decoder.tiles(buffer.getvalue(), SPEC, tenant="b", field="image")


async def test_a_bad_picture_stays_bad(decoder: ImageDecoder) -> None:
    for _ in range(2):
        with pytest.raises(InvalidImage):
            await decoder.tiles(b"no picture", SPEC, tenant="a", field="image")


async def test_what_is_odd_about_a_picture_is_not_told_to_the_servers_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "JPEG", exif=exif.tobytes()[:20])
    decoder = ImageDecoder(max_pixels=10_000)  # its processes write where this one does now
    try:
        tiles = await decoder.tiles(buffer.getvalue(), SPEC, tenant="a", field="image")
    finally:
        decoder.close()
    assert tiles.pixels.any()
    assert capfd.readouterr().err == ""
