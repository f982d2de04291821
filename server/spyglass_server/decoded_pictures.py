"""A cache of recently decoded pictures' tiles: the next question about a picture needs them again."""

from collections import OrderedDict

from spyglass_server.images import ImageSpec, ImageTiles

Key = tuple[str, bytes, ImageSpec]
"""A tenant, the digest of a file, and the tiles that the model wants: tenants never share."""


class DecodedPictures:
    """The latest pictures that fit into a number of bytes; a single tenant gets at most half of that."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[Key, ImageTiles] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """The size of all tiles."""
        return sum(tiles.pixels.nbytes for tiles in self._tiles.values())

    def find(self, key: Key) -> ImageTiles | None:
        """Returns the tiles of a picture if they are still cached."""
        tiles = self._tiles.get(key)
        if tiles is not None:
            self._tiles.move_to_end(key)
        return tiles

    def keep(self, key: Key, tiles: ImageTiles) -> None:
        """Adds a picture, and evicts the least recently used ones to make room, its tenant's own first."""
        self._tiles[key] = tiles
        self._tiles.move_to_end(key)
        own = [one for one in self._tiles if one[0] == key[0]]
        excess = sum(self._tiles[one].pixels.nbytes for one in own) - self._max_bytes // 2
        while excess > 0:
            excess -= self._tiles.pop(own.pop(0)).pixels.nbytes
        while self.num_bytes > self._max_bytes:
            self._tiles.popitem(last=False)
