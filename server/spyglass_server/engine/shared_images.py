"""Passes images to the engine process in blocks of shared memory: the server writes them, the engine reads them.

A block holds only the tiles of one image, rows * columns of them in reading order, each [3, tile, tile] uint8. The
system may round its size up.
"""

import contextlib
from collections.abc import Iterable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from spyglass_server.engine.messages import ImageInput, ImageKey

_FILES = Path("/dev/shm")  # where Linux keeps shared memory


class SharedImages:
    """The tiles of one request's images. Call `release` once the engine has copied them, or never will."""

    def __init__(self) -> None:
        self._blocks: list[SharedMemory] = []
        self.inputs: tuple[ImageInput, ...] = ()
        """The images as the request refers to them."""

    def copy(self, images: Iterable[tuple[ImageKey, int, int, memoryview]]) -> None:
        """Copies images, each (key, rows, columns, bytes of its tiles), into shared memory.

        Raises:
            OSError: there is not enough shared memory.
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
        """Copies one image into a new block and returns the block's name."""
        block = SharedMemory(create=True, size=pixels.nbytes)
        self._blocks.append(block)
        _write(block, pixels.cast("B"))
        return block.name


def _write(block: SharedMemory, pixels: memoryview) -> None:
    """Fills a block through its file, if it has one: a lack of memory then raises an error instead of a signal that
    would kill the process.
    """
    path = _FILES / block.name
    if path.exists():
        with path.open("r+b") as file:
            file.write(pixels)
    else:
        assert block.buf is not None
        block.buf[: pixels.nbytes] = pixels


@contextlib.contextmanager
def shared_pixels(image: ImageInput, tile_size: int) -> Iterator[memoryview]:
    """Yields the bytes of an image's tiles, each [3, tile_size, tile_size], in the engine process.

    They must not be accessed after the context has closed.

    Raises:
        FileNotFoundError: the server has freed the block.
    """
    block = SharedMemory(image.memory_name)
    try:
        assert block.buf is not None
        with block.buf[: image.num_tiles * 3 * tile_size**2] as pixels:
            yield pixels
    finally:
        block.close()
