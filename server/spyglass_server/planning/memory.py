"""How much memory weights and caches take, and how free memory is divided between the caches: arithmetic alone."""

import math
from dataclasses import dataclass

PAGE_SIZE = 16
"""Tokens of a page of text."""
_SCALE_BYTES = 4
"""Of each output of a quantized linear layer."""
_IMAGE_SHARE = 3
"""Images get one part in so many of what is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters of a model: weights of the linear layers that quantization takes, their outputs, all others."""

    linear: int
    outputs: int
    other: int

    def nbytes(self, itemsize: int, quantization: str) -> int:
        """What they take at so many bytes each, or the linear ones in 8 bits where `quantization` is not "none"."""
        if quantization == "none":
            return (self.linear + self.other) * itemsize
        return self.linear + self.outputs * _SCALE_BYTES + self.other * itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUnits:
    """What caches consist of: pages of `page_size` tokens of text, and tiles, of which an image has `image_tiles`."""

    page_size: int
    page_bytes: int
    tile_bytes: int
    image_tiles: int

    @property
    def image_bytes(self) -> int:
        """What the largest image takes."""
        return self.image_tiles * self.tile_bytes

    def text_bytes(self, tokens: int) -> int:
        """What the pages of so many tokens take."""
        return math.ceil(tokens / self.page_size) * self.page_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheWishes:
    """What is asked of the caches: bytes for pages and for tiles, None for what there is; tokens of the longest
    sequence, None for as long as possible; as many images as may be of use."""

    cache_bytes: int | None
    image_cache_bytes: int | None
    max_model_len: int | None
    max_images: int

    def least_text(self, units: CacheUnits) -> int:
        """The fewest bytes of pages that do."""
        return units.text_bytes(self.max_model_len or 1) if self.cache_bytes is None else self.cache_bytes

    def least_images(self, units: CacheUnits) -> int:
        """The fewest bytes of tiles that do."""
        return units.image_bytes if self.image_cache_bytes is None else self.image_cache_bytes

    def least(self, units: CacheUnits) -> int:
        """The fewest bytes of both caches that do."""
        return self.least_text(units) + self.least_images(units)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """How many pages and tiles the caches have."""

    num_pages: int
    num_tiles: int

    def nbytes(self, units: CacheUnits) -> int:
        """The memory of both caches."""
        return self.num_pages * units.page_bytes + self.num_tiles * units.tile_bytes


def divide(free: int, wishes: CacheWishes, units: CacheUnits) -> CacheSizes:
    """Divides free bytes, at least `wishes.least`: a third for images, but no more than are of use, the rest for text.

    Images get less where the longest sequence needs it.
    """
    images = wishes.image_cache_bytes
    if images is None:
        share = free // _IMAGE_SHARE if wishes.cache_bytes is None else free
        images = min(share, wishes.max_images * units.image_bytes, free - wishes.least_text(units))
    num_tiles = max(images, wishes.least_images(units)) // units.tile_bytes
    text = free - num_tiles * units.tile_bytes if wishes.cache_bytes is None else wishes.cache_bytes
    return CacheSizes(num_pages=text // units.page_bytes, num_tiles=num_tiles)


def gigabytes(num_bytes: float) -> str:
    """Three digits, in units of 10^9 bytes, or 10^6 where that is less than one."""
    if num_bytes >= 10**11:
        return f"{num_bytes / 1e9:.0f} GB"
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.3g} MB"
