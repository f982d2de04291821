"""The first rank's runner: it sends each command to the other ranks before it does its own part."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from spyglass_server.engine.messages import ImageInput, ImageKey
from spyglass_server.engine.shared_images import shared_pixels
from spyglass_server.engine.worker.batch import DeviceLost, Pending, Row, RowOutput
from spyglass_server.runtime.parallel.commands import Compute, CopyPages, DropImage, EncodeImage, TakeImage
from spyglass_server.runtime.parallel.followers import Followers
from spyglass_server.runtime.parallel.group import Group
from spyglass_server.runtime.runner import ModelRunner

T = TypeVar("T")


class LeadingRunner:
    """Implements `Runner`.

    If one rank fails, the others wait forever, so nothing is retried: the engine ends, and restarts.
    """

    def __init__(self, runner: ModelRunner, group: Group, followers: Followers) -> None:
        self._runner, self._group, self._followers = runner, group, followers
        self.looks_ahead = runner.looks_ahead

    def take_image(self, image: ImageInput) -> None:
        with shared_pixels(image, self._runner.tile_side) as pixels:
            copied = bytes(pixels)
        self._together(TakeImage(image, copied), lambda: self._runner.take_pixels(image, copied))

    def drop_image(self, key: ImageKey) -> None:
        self._together(DropImage(key), lambda: self._runner.drop_image(key))

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        return self._together(EncodeImage(key, tuple(tiles)), lambda: self._runner.encode_image(key, tiles))

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            self._together(CopyPages(tuple(pairs)), lambda: self._runner.copy_pages(pairs))

    def start(self, rows: Sequence[Row]) -> Pending:
        plan = self._runner.plan(rows)
        return self._together(Compute(plan), lambda: self._runner.sample(rows, plan, self._runner.forward(plan)))

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        return self.start(rows)()

    def close(self) -> None:
        self._followers.dismiss()

    def _together(self, command: object, work: Callable[[], T]) -> T:
        self._group.tell(command)
        try:
            return work()
        except Exception as error:
            raise DeviceLost(f"one of several ranks failed: {error!r}") from error
