"""Block tables that stay on the device: each sequence of a batch has a seat, a row of its page and tile numbers.

The host remembers what each seat holds, so only new entries are copied.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.worker.batch import Row

Blocks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seating:
    """The rows' seats, int32 [rows], and the `values` that must first be written to `places` in the tables."""

    seats: NDArray[np.int32]
    places: NDArray[np.int32]
    values: NDArray[np.int32]


class Seats:
    """The tables of pages [seats, pages] and of tiles [seats, tiles], int32, side by side in one tensor.

    After the seats for sequences comes a spare one, for rows that are never read.
    """

    def __init__(self, count: int, max_pages: int, max_tiles: int, spare_page: int, device: torch.device) -> None:
        self.spare = count
        self._max_pages, self._max_tiles = max_pages, max(max_tiles, 1)
        self._first_tiles = (count + 1) * max_pages
        self.all = torch.full(
            (self._first_tiles + (count + 1) * self._max_tiles,), spare_page, dtype=torch.int32, device=device
        )
        self._pages: list[Blocks] = [()] * count
        self._tiles: list[tuple[Blocks, ...]] = [()] * count
        self._seat_of: OrderedDict[tuple[int, int], int] = OrderedDict()  # most recently seen last
        self._free = list(range(count))

    @property
    def pages(self) -> Tensor:
        return self.all[: self._first_tiles].view(-1, self._max_pages)

    @property
    def tiles(self) -> Tensor:
        return self.all[self._first_tiles :].view(-1, self._max_tiles)

    def take(self, rows: Sequence[Row]) -> Seating:
        """Assigns seats to the sequences of a batch; the least recently seen ones lose theirs."""
        seats = self._choose([row.sequence for row in rows])
        places: list[NDArray[np.int32]] = []
        values: list[Sequence[int]] = []
        for seat, row in zip(seats, rows, strict=True):
            known = self._pages[seat]
            if row.pages != known:
                begin = len(known) if row.pages[: len(known)] == known else 0
                self._pages[seat] = row.pages
                self._note(places, values, seat * self._max_pages + begin, row.pages[begin:])
            if row.image_tiles != self._tiles[seat]:
                self._tiles[seat] = row.image_tiles
                first = self._first_tiles + seat * self._max_tiles
                self._note(places, values, first, tuple(chain.from_iterable(row.image_tiles)))
        return Seating(
            np.array(seats, np.int32),
            np.concatenate([np.empty(0, np.int32), *places]),
            np.fromiter(chain.from_iterable(values), np.int32),
        )

    def _choose(self, sequences: Sequence[int]) -> list[int]:
        times: dict[int, int] = {}
        keys = []
        for sequence in sequences:  # duplicates occur only in tests
            times[sequence] = times.get(sequence, -1) + 1
            keys.append((sequence, times[sequence]))
        for key in keys:
            if key in self._seat_of:
                self._seat_of.move_to_end(key)
        for key in keys:
            if key not in self._seat_of:
                self._seat_of[key] = self._free.pop() if self._free else self._seat_of.popitem(last=False)[1]
        return [self._seat_of[key] for key in keys]

    @staticmethod
    def _note(places: list[NDArray[np.int32]], values: list[Sequence[int]], first: int, blocks: Blocks) -> None:
        places.append(np.arange(first, first + len(blocks), dtype=np.int32))
        values.append(blocks)
