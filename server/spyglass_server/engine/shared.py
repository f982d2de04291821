"""Images on their way to the engine process, in shared memory.

Owns the blocks from their making until the engine has copied them. Knows nothing of how tiles are
made.
"""

import os
from collections.abc import Iterable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from spyglass_server.engine.types import ImageInput, ImageKey

_FILES = Path("/dev/shm")  # where Linux keeps shared memory


class SharedTiles:
    """The tiles of one request's images. `release` must be called once the engine has them, or never will."""

    def __init__(self) -> None:
        self._blocks: list[SharedMemory] = []
        self.inputs: tuple[ImageInput, ...] = ()
        """The images as the engine is told of them."""

    def copy(self, images: Iterable[tuple[ImageKey, int, int, memoryview]]) -> None:
        """Copies images, each (key, rows, columns, bytes of its tiles), into shared memory.

        Raises:
            OSError: there is no room for them.
        """
        self.inputs = tuple(
            ImageInput(key=key, rows=rows, columns=columns, memory_name=self._copy(pixels))
            for key, rows, columns, pixels in images
        )

    def release(self) -> None:
        """Frees the memory; may be called again."""
        while self._blocks:
            block = self._blocks.pop()
            block.close()
            block.unlink()

    def _copy(self, pixels: memoryview) -> str:
        """Copies one image into a block of its own and returns the block's name."""
        block = SharedMemory(create=True, size=pixels.nbytes)
        self._blocks.append(block)
        _reserve(block)
        assert block.buf is not None
        block.buf[: pixels.nbytes] = pixels.cast("B")
        return block.name


def _reserve(block: SharedMemory) -> None:
    """Takes a block's memory now: when there is none, writing to it would kill the process."""
    path = _FILES / block.name
    if path.exists():
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, block.size)
