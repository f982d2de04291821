"""The commands that the first rank sends to the others."""

from dataclasses import dataclass
from typing import Any

from spyglass_server.engine.messages import ImageInput, ImageKey


@dataclass(frozen=True, slots=True)
class TakeImage:
    """Keep an image's pixels, uint8 [tiles, 3, tile, tile]; other machines cannot read its shared memory."""

    image: ImageInput
    pixels: bytes


@dataclass(frozen=True, slots=True)
class DropImage:
    """Forget an image's pixels."""

    key: ImageKey


@dataclass(frozen=True, slots=True)
class EncodeImage:
    """Continue encoding an image."""

    key: ImageKey
    tiles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CopyPages:
    """Copy pages, each (source, target)."""

    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute a plan."""

    plan: Any
