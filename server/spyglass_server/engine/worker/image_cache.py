"""Accounting of the images' cross-attention cache: which image's states are in which tiles, and who needs them.

A tile has room for the states of one image tile. When none are free, the states needed longest ago are evicted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spyglass_server.engine.messages import ImageKey


@dataclass(slots=True)
class _Entry:
    tiles: tuple[int, ...]
    holders: int = 0
    encoded: bool = False


class ImageCache:
    """States of images in a fixed number of tiles; the least recently needed are evicted first."""

    def __init__(self, num_tiles: int) -> None:
        self.num_tiles = num_tiles
        self._free = list(range(num_tiles))  # ascending
        self._entries: dict[ImageKey, _Entry] = {}  # without holders: least recently used first

    @property
    def usage(self) -> float:
        """The fraction of tiles that is held."""
        held = sum(len(entry.tiles) for entry in self._entries.values() if entry.holders)
        return held / self.num_tiles if self.num_tiles else 0.0

    def hold(self, images: Sequence[tuple[ImageKey, int]]) -> bool:
        """Holds the images of a sequence, each (key, tiles), evicting idle ones if necessary.

        Returns False, and holds nothing, if other running sequences need the room.
        """
        wanted = dict(images)
        missing = sum(count for key, count in wanted.items() if key not in self._entries)
        idle = [key for key, entry in self._entries.items() if not entry.holders and key not in wanted]
        if missing > len(self._free) + sum(len(self._entries[key].tiles) for key in idle):
            return False
        for key in idle:
            if missing <= len(self._free):
                break
            self._forget(key)
        for key, count in wanted.items():
            if key not in self._entries:
                self._entries[key] = _Entry(self._take(count))
            self._entries[key].holders += 1
        return True

    def release(self, keys: Iterable[ImageKey]) -> None:
        """Ends a `hold`. Encoded states stay until the room is needed."""
        for key in set(keys):
            entry = self._entries[key]
            assert entry.holders > 0, "an image was released twice"
            entry.holders -= 1
            if entry.holders:
                continue
            if entry.encoded:
                self._entries[key] = self._entries.pop(key)  # now the most recently used
            else:
                self._forget(key)

    def tiles(self, key: ImageKey) -> tuple[int, ...]:
        """Returns the tiles for the states of a held image, encoded or not."""
        return self._entries[key].tiles

    def is_held(self, key: ImageKey) -> bool:
        """Whether a running sequence holds the image, so that another needs no more room for it."""
        return key in self._entries and self._entries[key].holders > 0

    def mark_encoded(self, key: ImageKey) -> None:
        assert not self._entries[key].encoded, "an image was encoded twice"
        self._entries[key].encoded = True

    def is_encoded(self, key: ImageKey) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.encoded

    def check(self, holders: Iterable[Iterable[ImageKey]]) -> None:
        """Asserts that the accounts agree with the images that sequences hold."""
        counts = dict.fromkeys(self._entries, 0)
        for keys in holders:
            for key in set(keys):
                counts[key] += 1
        assert counts == {key: entry.holders for key, entry in self._entries.items()}, "holders differ"
        used = [tile for entry in self._entries.values() for tile in entry.tiles]
        assert sorted([*used, *self._free]) == list(range(self.num_tiles)), "a tile is lost, or of two images"

    def _take(self, count: int) -> tuple[int, ...]:
        """Takes free tiles, contiguous if possible, as those can be read without a copy."""
        free = self._free
        begin = next((i for i in range(len(free) - count + 1) if free[i + count - 1] - free[i] == count - 1), 0)
        self._free = free[:begin] + free[begin + count :]
        return tuple(free[begin : begin + count])

    def _forget(self, key: ImageKey) -> None:
        self._free = sorted([*self._free, *self._entries.pop(key).tiles])
