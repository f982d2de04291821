"""Tiles of pictures that were decoded a moment ago: the next question about a picture needs them again."""

from collections import OrderedDict

from spyglass_server.images import ImageSpec, ImageTiles

Key = tuple[str, bytes, ImageSpec]
"""A tenant, the digest of a file, and what the model wants of it: tenants never share."""


class DecodedPictures:
    """The latest, as many as a number of bytes holds; a single tenant has at most half of that."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[Key, ImageTiles] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """What all of them hold."""
        return sum(tiles.pixels.nbytes for tiles in self._tiles.values())

    def find(self, key: Key) -> ImageTiles | None:
        """The tiles of a picture, if they are still here."""
        tiles = self._tiles.get(key)
        if tiles is not None:
            self._tiles.move_to_end(key)
        return tiles

    def keep(self, key: Key, tiles: ImageTiles) -> None:
        """Keeps a picture, and forgets those needed longest ago where there is no room: first its tenant's own."""
        self._tiles[key] = tiles
        self._tiles.move_to_end(key)
        own = [one for one in self._tiles if one[0] == key[0]]
        excess = sum(self._tiles[one].pixels.nbytes for one in own) - self._max_bytes // 2
        while excess > 0:
            excess -= self._tiles.pop(own.pop(0)).pixels.nbytes
        while self.num_bytes > self._max_bytes:
            self._tiles.popitem(last=False)
