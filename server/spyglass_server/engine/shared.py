"""Images on their way to the engine process, in shared memory.

Owns the blocks from their making until the engine has copied them. Knows nothing of how tiles are
made.
"""

from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory

from spyglass_server.engine.types import ImageInput, ImageKey


class SharedTiles:
    """The tiles of one request's images. `release` must be called once the engine has them, or never will."""

    def __init__(self, images: Sequence[tuple[ImageKey, int, int, memoryview]]) -> None:
        """Copies images, each (key, rows, columns, bytes of its tiles), into shared memory."""
        self._blocks: list[SharedMemory] = []
        inputs = []
        for key, rows, columns, pixels in images:
            block = SharedMemory(create=True, size=pixels.nbytes)
            self._blocks.append(block)
            assert block.buf is not None
            block.buf[: pixels.nbytes] = pixels.cast("B")
            inputs.append(ImageInput(key, rows, columns, block.name))
        self.inputs: tuple[ImageInput, ...] = tuple(inputs)

    def release(self) -> None:
        """Frees the memory; may be called again."""
        while self._blocks:
            block = self._blocks.pop()
            block.close()
            block.unlink()
