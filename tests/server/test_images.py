"""Pictures: what is refused, and what comes out right."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spyglass_server.images import ImageError, ImageSpec, choose_canvas, decode_image, tile_image

SPEC = ImageSpec(tile_size=56, max_tiles=4)


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decode(data: bytes, max_pixels: int = 10**6) -> Image.Image:
    return decode_image(data, max_pixels)


def bomb() -> bytes:
    """A PNG of some hundred bytes that declares 65500 x 65500 pixels."""
    header = struct.pack(">IIBBBBB", 65500, 65500, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PLAIN = Image.new("RGB", (40, 30), "red")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        bomb(),
        encode(PLAIN, "JPEG")[:300],
        encode(PLAIN)[:60],
        encode(PLAIN, "BMP"),
        encode(PLAIN, "TIFF"),
        encode(PLAIN, "JPEG") + b"\xff\xda" * 101,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_damaged_and_foreign_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="1200 are allowed"):
        decode(encode(Image.new("RGB", (41, 30))), max_pixels=1200)


@settings(max_examples=200)
@given(st.binary(max_size=80), st.integers(0, 400))
def test_no_bytes_break_the_decoder(noise: bytes, at: int) -> None:
    data = encode(PLAIN)
    try:
        mode = decode(data[:at] + noise + data[at + len(noise) :]).mode
    except ImageError:
        mode = "refused"
    assert mode in ("RGB", "refused")


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P")]
)
def test_the_formats_come_out_in_their_colours(form: str, mode: str) -> None:
    source = Image.new("RGB", (40, 30), (200, 200, 200)).convert(mode)
    pixel = decode(encode(source, form)).getpixel((20, 15))
    assert isinstance(pixel, tuple)
    assert all(abs(channel - 200) <= 4 for channel in pixel)


def test_only_the_first_frame_of_a_gif_is_looked_at() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    image = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert decode(encode(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_transparent_pixels_are_white() -> None:
    for mode in ("RGBA", "LA"):
        assert decode(encode(Image.new(mode, (8, 8)))).getpixel((0, 0)) == (255, 255, 255)


def test_rotation_by_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif)).size == (30, 40)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_slivers_keep_a_pixel(size: tuple[int, int]) -> None:
    tiles = tile_image(Image.new("RGB", size, "white"), SPEC)
    assert tiles.pixels.max() == 255


@pytest.mark.parametrize(
    ("size", "canvas"), [((800, 600), (2, 2)), ((300, 1200), (1, 3)), ((561, 560), (2, 1)), ((560, 560), (1, 1))]
)
def test_known_canvases(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert choose_canvas(*size, ImageSpec(560, 4)) == canvas


def test_tiles_are_cut_in_reading_order_and_padded_at_the_end() -> None:
    image = Image.new("RGB", (112, 112))
    for i, colour in enumerate([(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]):
        image.paste(colour, (56 * (i % 2), 56 * (i // 2), 56 * (i % 2) + 56, 56 * (i // 2) + 56))
    tiles = tile_image(image, SPEC)
    assert (tiles.rows, tiles.columns) == (2, 2)
    assert [int(tile[0, 30, 30]) for tile in tiles.pixels] == [10, 20, 30, 40]
    sliver = tile_image(Image.new("RGB", (56, 20), "white"), SPEC).pixels
    assert sliver[0, 0, 19, 55] == 255
    assert sliver[0, 0, 20:].max() == 0


def test_a_digest_tells_pictures_and_canvases_apart() -> None:
    digests = {
        tile_image(image, SPEC).digest
        for image in (
            PLAIN,
            Image.new("RGB", (40, 30), "blue"),
            Image.new("RGB", (112, 56)),
            Image.new("RGB", (56, 112)),
        )
    }
    assert len(digests) == 4
    assert tile_image(PLAIN.copy(), SPEC).digest in digests
