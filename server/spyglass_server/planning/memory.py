"""How much memory weights and caches take, and how free memory is divided between the caches: pure arithmetic."""

import math
from dataclasses import dataclass

PAGE_SIZE = 16
"""Tokens per page of text."""
_SCALE_BYTES = 4
"""Size of the scale of each output of a quantized linear layer."""
_IMAGE_SHARE = 3
"""Images get one part in this many of the free memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters of a model: weights of the linear layers that are quantized, their outputs, all others."""

    linear: int
    outputs: int
    other: int

    def nbytes(self, itemsize: int, quantization: str) -> int:
        """Their size at `itemsize` bytes each, with the linear ones in 8 bits unless `quantization` is "none"."""
        if quantization == "none":
            return (self.linear + self.other) * itemsize
        return self.linear + self.outputs * _SCALE_BYTES + self.other * itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUnits:
    """What caches consist of: pages of `page_size` tokens of text, and tiles, at most `image_tiles` for each image."""

    page_size: int
    page_bytes: int
    tile_bytes: int
    image_tiles: int

    @property
    def image_bytes(self) -> int:
        """The size of the largest image."""
        return self.image_tiles * self.tile_bytes

    def text_bytes(self, tokens: int) -> int:
        """The size of the pages for `tokens` tokens."""
        return math.ceil(tokens / self.page_size) * self.page_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheWishes:
    """The requested caches: bytes for pages and for tiles, None for what is available; tokens of the longest sequence,
    None for as long as possible; the maximum number of useful images."""

    cache_bytes: int | None
    image_cache_bytes: int | None
    max_model_len: int | None
    max_images: int

    def least_text(self, units: CacheUnits) -> int:
        """The minimum bytes of pages."""
        return units.text_bytes(self.max_model_len or 1) if self.cache_bytes is None else self.cache_bytes

    def least_images(self, units: CacheUnits) -> int:
        """The minimum bytes of tiles."""
        return units.image_bytes if self.image_cache_bytes is None else self.image_cache_bytes

    def least(self, units: CacheUnits) -> int:
        """The minimum bytes of both caches."""
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
    """Divides free bytes, at least `wishes.least`: a third for images, but no more than is useful, the rest for text.

    Images get less if the longest sequence needs it.
    """
    images = wishes.image_cache_bytes
    if images is None:
        share = free // _IMAGE_SHARE if wishes.cache_bytes is None else free
        images = min(share, wishes.max_images * units.image_bytes, free - wishes.least_text(units))
    num_tiles = max(images, wishes.least_images(units)) // units.tile_bytes
    text = free - num_tiles * units.tile_bytes if wishes.cache_bytes is None else wishes.cache_bytes
    return CacheSizes(num_pages=text // units.page_bytes, num_tiles=num_tiles)


def gigabytes(num_bytes: float) -> str:
    """Formats bytes with three digits, in units of 10^9, or of 10^6 if that is less than one."""
    if num_bytes >= 10**11:
        return f"{num_bytes / 1e9:.0f} GB"
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.3g} MB"
