"""Small pictures, drawn for a test."""

import base64
import io

import numpy as np
from PIL import Image, ImageDraw


def disc(colour: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A disc on white."""
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((8, 4, size[0] - 8, size[1] - 4), fill=colour)
    return picture


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture that no format makes small."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def data_uri(picture: Image.Image, kind: str = "PNG") -> str:
    """The picture's file as a URL that holds all of it."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(picture, kind)).decode()}"
