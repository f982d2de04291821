"""Where the model looked: the attention of an answer's tokens to the patches of its pictures, and how to draw it.

    answer = client.generate("What is red?", images=["fruit.png"], image_attention=True)
    heat = draw_attention(Path("fruit.png").read_bytes(), answer.image_grids[0], answer.choices[0].attention, 0)
    Path("looked.png").write_bytes(heat)

Drawing needs Pillow, which the `chat` extra installs.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spyglass.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from PIL import Image

_DIM = 0.3
"""Relative brightness where the model did not look."""
_WARM = (255, 96, 16)
_WARMTH = 0.45
"""Opacity of that colour where the model looked most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGrid:
    """The patch grid of a picture's canvas. The picture covers patches from the top left; the rest is padding."""

    rows: int
    columns: int
    covered_rows: float
    covered_columns: float

    @classmethod
    def from_proto(cls, grid: pb.ImageGrid) -> "ImageGrid":
        return cls(
            rows=grid.rows,
            columns=grid.columns,
            covered_rows=grid.covered_rows,
            covered_columns=grid.covered_columns,
        )


@dataclass(frozen=True, slots=True)
class ImageMap:
    """A token's attention to the patches of a picture: a byte per patch, row by row, times `scale` / 255."""

    scale: float
    data: bytes

    @property
    def weights(self) -> list[float]:
        """The attention to each patch, row by row."""
        return [value * self.scale / 255 for value in self.data]


@dataclass(frozen=True, slots=True)
class TokenAttention:
    """A token's bytes and its map of each picture of the conversation, None for a picture it does not see.

    Tokens after the first 8 MiB of maps have none.
    """

    bytes: bytes
    maps: tuple[ImageMap | None, ...]

    @classmethod
    def from_proto(cls, found: pb.TokenAttention) -> "TokenAttention":
        maps = tuple(ImageMap(one.scale, one.data) if one.data else None for one in found.maps)
        return cls(found.bytes, maps)


def average_weights(grid: ImageGrid, tokens: Iterable[TokenAttention], picture: int = 0) -> list[float]:
    """The attention to each patch of a picture, row by row, averaged over the tokens that have a map of it.

    Raises ValueError if none has.
    """
    maps = [one.maps[picture] for one in tokens if picture < len(one.maps)]
    found = [one.weights for one in maps if one is not None]
    if not found:
        raise ValueError("none of the tokens has a map of this picture")
    assert len(found[0]) == grid.rows * grid.columns
    return [sum(values) / len(found) for values in zip(*found, strict=True)]


def draw_attention(data: bytes, grid: ImageGrid, tokens: Iterable[TokenAttention], picture: int = 0) -> bytes:
    """Darkens the picture `data` except where the tokens looked; returns a PNG.

    `picture` is its number in the conversation. Raises ImportError without Pillow, and ValueError if no token has a map
    of it or `data` is not a picture.
    """
    from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

    weights = average_weights(grid, tokens, picture)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            shown = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("this is not a picture that can be drawn on") from error
    heat = _heat(weights, grid, shown.size)
    light = heat.point(lambda value: int(255 * _DIM + value * (1 - _DIM)))
    lit = ImageChops.multiply(shown, Image.merge("RGB", (light, light, light)))
    warm = Image.new("RGB", shown.size, _WARM)
    result = Image.composite(warm, lit, heat.point(lambda value: int(value * _WARMTH)))
    out = io.BytesIO()
    result.save(out, "PNG")
    return out.getvalue()


def _heat(weights: Sequence[float], grid: ImageGrid, size: tuple[int, int]) -> "Image.Image":
    """Draws the weights in grey at the size of a picture, 255 where they are greatest."""
    from PIL import Image

    most = max(weights) or 1.0
    canvas = Image.new("L", (grid.columns, grid.rows))
    canvas.putdata([round(255 * weight / most) for weight in weights])
    covered = (0.0, 0.0, grid.covered_columns, grid.covered_rows)
    return canvas.resize(size, Image.Resampling.BICUBIC, box=covered)
