"""Shared memory for images: what does not fit is refused, and nothing is left behind."""

import io
from pathlib import Path

import pytest

from spyglass_server.engine.messages import ImageKey
from spyglass_server.engine.shared_images import SharedImages

KEY = ImageKey("tenant", b"digest")
FILES = Path("/dev/shm")


def test_blocks_hold_the_tiles_until_they_are_released() -> None:
    pixels = bytes(range(256)) * 12
    tiles = SharedImages()
    tiles.copy([(KEY, 1, 2, memoryview(pixels)), (KEY, 1, 1, memoryview(b"x"))])
    first, second = (FILES / image.memory_name for image in tiles.inputs)
    assert (tiles.inputs[0].key, tiles.inputs[0].num_tiles) == (KEY, 2)
    assert first.read_bytes()[: len(pixels)] == pixels
    tiles.release()
    tiles.release()
    assert not first.exists()
    assert not second.exists()


def test_without_room_it_fails_and_what_it_took_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(FILES.iterdir())

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    tiles = SharedImages()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: Full())
        with pytest.raises(OSError, match="No space"):
            tiles.copy([(KEY, 1, 1, memoryview(b"x" * 100))])
    (block,) = (path for path in set(FILES.iterdir()) - before if path.name.startswith("psm_"))
    assert block.read_bytes()[:100] == bytes(100)
    tiles.release()
    assert not block.exists()
