"""Decodes images and cuts them into tiles.

Matches Meta's image_transform.py, except that EXIF rotation is applied, transparency is put on white, 16-bit grey is
scaled, and slivers keep a pixel. Imports as little as possible: it runs in separate processes.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_MAX_JPEG_SCANS = 100
"""Progressive pictures have about ten; each costs a pass over all pixels, however few bytes it has."""


class ImageError(ValueError):
    """A picture cannot be used; the text is for the caller."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The model's image input: square tiles of `tile_size` pixels, at most `max_tiles`."""

    tile_size: int
    max_tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTiles:
    """A picture cut into rows x columns tiles: uint8 [tiles, 3, tile, tile], and a digest of layout and pixels.

    `width` and `height` are the picture's size on the canvas, in pixels.
    """

    rows: int
    columns: int
    width: int
    height: int
    pixels: NDArray[np.uint8]
    digest: bytes


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes a picture to RGB.

    Raises:
        ImageError: it has an unsupported format, is damaged, or is larger than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_size(image.width, image.height, max_pixels)
            if image.format == "JPEG" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
                raise ImageError(f"the JPEG image has more than {_MAX_JPEG_SCANS} scans")
            image.load()  # the first frame, if there are several
            return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image has too many pixels; {max_pixels} are allowed") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise ImageError("the image is damaged, or is not a JPEG, PNG, WebP or GIF") from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError for a picture with too many pixels."""
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels; {max_pixels} are allowed")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def tile_image(image: Image.Image, spec: ImageSpec) -> ImageTiles:
    """Resizes an RGB picture onto its canvas and cuts the canvas into tiles."""
    columns, rows, width, height = lay_out(image.width, image.height, spec)
    canvas = Image.new("RGB", (columns * spec.tile_size, rows * spec.tile_size))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    grid = np.asarray(canvas).reshape(rows, spec.tile_size, columns, spec.tile_size, 3)
    pixels = np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, spec.tile_size, spec.tile_size)
    digest = hashlib.sha256(f"{rows}x{columns}x{spec.tile_size}:".encode())
    digest.update(pixels.data)
    return ImageTiles(rows=rows, columns=columns, width=width, height=height, pixels=pixels, digest=digest.digest())


def decode_tiles(data: bytes, max_pixels: int, spec: ImageSpec) -> ImageTiles:
    """Returns the tiles of an encoded picture. Raises ImageError as `decode_image` does."""
    return tile_image(decode_image(data, max_pixels), spec)


def lay_out(width: int, height: int, spec: ImageSpec) -> tuple[int, int, int, int]:
    """Lays out a picture: columns and rows of tiles, and its width and height on that canvas."""
    columns, rows = choose_canvas(width, height, spec)
    return columns, rows, *_fit(width, height, columns, rows, spec.tile_size)


def choose_canvas(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Chooses the canvas, (columns, rows) in tiles: the least upscale that fits, else the least downscale.

    Ties go to the smaller area. Scales are compared in float32 as in the reference.
    """
    scales = [(_scale(width, height, c, r, spec.tile_size), c, r) for c, r in _canvases(spec.max_tiles)]
    up = [scale for scale, _, _ in scales if scale >= 1]
    best = min(up) if up else max(scale for scale, _, _ in scales)
    _, columns, rows = min((c * r, c, r) for scale, c, r in scales if scale == best)
    return columns, rows


def _scale(width: int, height: int, columns: int, rows: int, tile: int) -> float:
    return float(min(np.float32(columns * tile) / np.float32(width), np.float32(rows * tile) / np.float32(height)))


@lru_cache
def _canvases(max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    return tuple((c, r) for c in sides for r in sides if c * r <= max_tiles)


def _fit(width: int, height: int, columns: int, rows: int, tile: int) -> tuple[int, int]:
    """The picture's size on the canvas: as large as fits, but not enlarged beyond a tile."""
    room_w = min(max(width, tile), columns * tile)
    room_h = min(max(height, tile), rows * tile)
    scale_w, scale_h = room_w / width, room_h / height
    if scale_w < scale_h:
        return room_w, max(1, min(math.floor(height * scale_w), room_h))
    return max(1, min(math.floor(width * scale_h), room_w)), room_h
