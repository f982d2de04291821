"""Accounting of the memory that image states take.

Owns which images have states, how many running sequences need each, and what is dropped when the
budget is full: the state that was needed longest ago. Knows neither pixels nor tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spyglass_server.engine.types import ImageKey


@dataclass(slots=True)
class _Entry:
    num_tiles: int
    holders: int = 0
    encoded: bool = False


class ImageCache:
    """States of images within a budget of tiles; the least recently needed go first."""

    def __init__(self, max_tiles: int) -> None:
        self.max_tiles = max_tiles
        self._entries: dict[ImageKey, _Entry] = {}  # those that nobody holds in the order of their last use
        self._tiles = 0
        self._dropped: list[ImageKey] = []

    def hold(self, images: Sequence[tuple[ImageKey, int]]) -> bool:
        """Holds the images of a sequence, each (key, tiles), making room where that is possible.

        Returns False, and holds nothing, when other running sequences need the room.
        """
        wanted = dict(images)
        missing = sum(tiles for key, tiles in wanted.items() if key not in self._entries)
        idle = sum(e.num_tiles for key, e in self._entries.items() if not e.holders and key not in wanted)
        if self._tiles + missing - idle > self.max_tiles:
            return False
        for key, tiles in wanted.items():
            if key not in self._entries:
                self._entries[key] = _Entry(tiles)
                self._tiles += tiles
            self._entries[key].holders += 1
        self._make_room()
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

    def is_held(self, key: ImageKey) -> bool:
        """Whether a running sequence needs it: one more needs no more room."""
        return key in self._entries and self._entries[key].holders > 0

    def mark_encoded(self, key: ImageKey) -> None:
        self._entries[key].encoded = True

    def is_encoded(self, key: ImageKey) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.encoded

    def take_dropped(self) -> list[ImageKey]:
        """The images whose states were dropped since the last call; their memory must be freed."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def check(self, holders: Iterable[Iterable[ImageKey]]) -> None:
        """Asserts that the accounts agree with the images that sequences hold."""
        counts = dict.fromkeys(self._entries, 0)
        for keys in holders:
            for key in set(keys):
                counts[key] += 1
        assert counts == {key: entry.holders for key, entry in self._entries.items()}, "holders differ"
        assert self._tiles == sum(entry.num_tiles for entry in self._entries.values()), "tiles differ"
        assert self._tiles <= self.max_tiles, "over budget"

    def _make_room(self) -> None:
        for key in [key for key, entry in self._entries.items() if not entry.holders]:
            if self._tiles <= self.max_tiles:
                return
            self._forget(key)

    def _forget(self, key: ImageKey) -> None:
        entry = self._entries.pop(key)
        self._tiles -= entry.num_tiles
        if entry.encoded:
            self._dropped.append(key)
