"""The plan of a batch for a GPU: numbers that go to the device in one copy, and their layout.

    flat tokens   [ decoding rows, one token each | spare rows of a recorded shape | prompts: t t t | t t t t ]

Decoding rows attend by their `reads`, prompts in query blocks. Numbers that a recorded step reads come first, at
offsets that depend only on its shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.backend import Memory
from spyglass_server.runtime.cuda.seats import Seats
from spyglass_server.runtime.image_attention import watched_span
from spyglass_server.runtime.image_spans import image_spans
from spyglass_server.runtime.logit_edits import LogitEdits
from spyglass_server.runtime.outputs import draws_of
from spyglass_server.runtime.sampler import random_starts

_ALIGNMENT = 16
"""Alignment of sections, in 4-byte numbers: kernels are recompiled for unaligned addresses."""
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Row counts for which decode steps are recorded."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """The shape of a recorded decode step: the number of rows, and whether some may see images."""

    rows: int
    sees_images: bool


@dataclass(frozen=True, slots=True)
class Section:
    """Where numbers of one kind are, in units of 4 bytes."""

    begin: int
    shape: tuple[int, ...]
    dtype: str

    def of(self, numbers: Tensor) -> Tensor:
        """The section of a plan's numbers on the device."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        count = int(np.prod(self.shape)) * dtype.itemsize // 4
        return numbers[self.begin : self.begin + count].view(dtype).view(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpan:
    """Flat tokens begin … begin + count - 1, each followed by a prompt token whose logprobs are requested, with `top`
    alternatives; `name` is the section of these prompt tokens."""

    begin: int
    count: int
    top: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedSlots:
    """A token whose attention to images is returned: its place in `image_index`, the section with the slots that it
    sees, and the layers."""

    place: int
    name: str
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedPlan:
    """What to compute for a batch.

    Sections for the forward pass: `tokens`, `positions` and `slots` [tokens]; `reads` [3, decoding rows] and `blocks`
    [5, query blocks] of the text; `image_reads` and `image_blocks` of the images, for the tokens of `image_index` or,
    in a recorded shape, for all tokens; `table_places` and `table_values`, new entries of the block tables; `sampled`,
    the flat token of each row of logits. For sampling: `draw_*` [draws], `edit_*` [changes], `mask_*`, `told`, the
    draws that return logprobs, and `told_rows`, their rows of logits.
    """

    numbers: NDArray[np.int32]
    sections: Mapping[str, Section]
    shape: GraphShape | None
    num_decoding: int
    prompts: tuple[PromptSpan, ...]
    watched: tuple[WatchedSlots, ...]
    failed: Mapping[int, str]
    """The sampled rows whose grammars allow no token."""
    max_told: int
    """Maximum number of alternatives in a draw's logprobs."""

    def section(self, name: str, numbers: Tensor) -> Tensor:
        """Returns the numbers of one kind from those on the device."""
        return self.sections[name].of(numbers)

    def count(self, name: str) -> int:
        """Returns the size of a section along its last dimension."""
        return self.sections[name].shape[-1]


@dataclass(slots=True)
class _Packer:
    """Packs arrays one after another."""

    parts: list[NDArray[np.int32]] = field(default_factory=list)
    sections: dict[str, Section] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, values: ArrayLike, dtype: str = "int32", width: int | None = None) -> None:
        """`width` is the number of columns of values that may have no rows; with it, values are stored by column."""
        array = np.asarray(values, dtype)
        if width is not None:
            array = array.reshape(-1, width).T
        array = np.ascontiguousarray(array)
        self.sections[name] = Section(self.size, array.shape, dtype)
        found = array.reshape(-1).view(np.int32)
        padding = -len(found) % _ALIGNMENT
        self.parts += [found, np.zeros(padding, np.int32)]
        self.size += len(found) + padding


def recorded_shapes(max_batch: int) -> list[GraphShape]:
    """Returns all shapes of decode steps for up to `max_batch` rows, largest first."""
    rows = sorted({min(count, max_batch) for count in _ROWS if count < 2 * max_batch}, reverse=True)
    return [GraphShape(count, sees) for count in rows for sees in (True, False)]


class PagedPlanner:
    """Makes plans. `shapes` are the recorded ones."""

    def __init__(self, memory: Memory, seats: Seats, vocab_size: int, query_block: int) -> None:
        self._memory, self._seats = memory, seats
        self._vocab_size, self._query_block = vocab_size, query_block
        self._spare_slot = memory.num_pages * memory.page_size
        self.shapes: set[GraphShape] = set()

    def plan(self, rows: Sequence[Row]) -> PagedPlan:
        """Lays out rows, in a recorded shape if one fits."""
        return self.in_shape(rows, self._shape(rows))

    def in_shape(self, rows: Sequence[Row], shape: GraphShape | None) -> PagedPlan:
        """Lays out decoding rows in a given shape, or any rows without a shape."""
        seating = self._seats.take(rows)
        seats: list[int] = seating.seats.tolist()
        decoding = [i for i, row in enumerate(rows) if len(row.tokens) == 1]
        order = decoding + [i for i, row in enumerate(rows) if len(row.tokens) > 1]
        num_spare = shape.rows - len(rows) if shape else 0
        ends = np.cumsum([len(rows[i].tokens) for i in order])
        ends[len(decoding) :] += num_spare
        last = np.empty(len(rows), np.int64)  # the flat index of each row's last token
        last[order] = ends - 1
        packer = _Packer()
        self._add_tokens(packer, rows, decoding, order[len(decoding) :], num_spare)
        self._add_reads(packer, rows, seats, decoding, num_spare)
        watched: tuple[WatchedSlots, ...] = ()
        if shape is None or shape.sees_images:
            watched = self._add_images(packer, rows, seats, order, num_spare, is_fixed=shape is not None)
        self._add_blocks(packer, rows, seats, order[len(decoding) :], len(decoding) + num_spare)
        packer.add("table_places", seating.places)
        packer.add("table_values", seating.values)
        failed, max_told = self._add_sampling(packer, rows, last, has_all=shape is not None)
        prompts = self._add_prompts(packer, rows, last)
        return PagedPlan(
            numbers=np.concatenate(packer.parts),
            sections=packer.sections,
            shape=shape,
            num_decoding=len(decoding) + num_spare,
            prompts=prompts,
            watched=watched,
            failed=failed,
            max_told=max_told,
        )

    def _shape(self, rows: Sequence[Row]) -> GraphShape | None:
        """Returns the smallest recorded shape that fits; None if there are prompts."""
        if any(len(row.tokens) > 1 or row.prompt_targets or watched_span(row) for row in rows):
            return None
        sees_images = any(self._image_read(row, 0)[2] for row in rows)
        fitting = [s for s in self.shapes if s.rows >= len(rows) and s.sees_images == sees_images]
        return min(fitting, key=lambda s: s.rows, default=None)

    def _add_tokens(
        self, packer: _Packer, rows: Sequence[Row], decoding: Sequence[int], prompts: Sequence[int], num_spare: int
    ) -> None:
        size = self._memory.page_size
        tokens = [rows[i].tokens[0] for i in decoding] + [0] * num_spare
        positions = [rows[i].start for i in decoding] + [0] * num_spare
        slots = [rows[i].pages[rows[i].start // size] * size + rows[i].start % size for i in decoding]
        slots += [self._spare_slot] * num_spare
        for i in prompts:
            at = np.arange(rows[i].start, rows[i].end)
            tokens += rows[i].tokens
            positions += at.tolist()
            slots += (np.array(rows[i].pages)[at // size] * size + at % size).tolist()
        packer.add("tokens", tokens)
        packer.add("positions", positions)
        packer.add("slots", slots)

    def _add_reads(
        self, packer: _Packer, rows: Sequence[Row], seats: Sequence[int], decoding: Sequence[int], num_spare: int
    ) -> None:
        reads = [(seats[i], 0, rows[i].end) for i in decoding] + [(self._seats.spare, 0, 1)] * num_spare
        packer.add("reads", reads, width=3)

    def _add_blocks(
        self, packer: _Packer, rows: Sequence[Row], seats: Sequence[int], prompts: Sequence[int], first: int
    ) -> None:
        blocks = []
        for i in prompts:
            blocks += self._query_blocks(first, len(rows[i].tokens), seats[i], 0, rows[i].start + 1, is_causal=True)
            first += len(rows[i].tokens)
        packer.add("blocks", blocks, width=5)

    def _add_images(
        self,
        packer: _Packer,
        rows: Sequence[Row],
        seats: Sequence[int],
        order: Sequence[int],
        num_spare: int,
        *,
        is_fixed: bool,
    ) -> tuple[WatchedSlots, ...]:
        """Adds the reads of tokens that see images or, with `is_fixed`, of all decoding rows.

        Returns the tokens whose attention is requested, in the order of the rows.
        """
        reads: list[tuple[int, int, int]] = []
        blocks: list[tuple[int, ...]] = []
        index: list[int] = []
        places: dict[int, int] = {}
        first = 0
        for i in order:
            row = rows[i]
            if len(row.tokens) == 1:
                read = self._image_read(row, seats[i])
                if is_fixed or read[2]:
                    reads.append(read)
                    index.append(first)
            else:
                for span in image_spans(row.request.image_positions, row.start, row.end):
                    begin, end = self._image_slots(row, span.first, span.last)
                    count = span.end - span.start
                    blocks += self._query_blocks(len(index), count, seats[i], begin, end, is_causal=False)
                    index += range(first + span.start - row.start, first + span.end - row.start)
            first += len(row.tokens)
            places[i] = len(index) - 1  # the last token's, if it sees any
        packer.add("image_reads", reads + [(self._seats.spare, 0, 0)] * num_spare, width=3)
        if not is_fixed:
            packer.add("image_blocks", blocks, width=5)
            packer.add("image_index", index)
        return tuple(self._add_watched(packer, rows, places))

    def _add_watched(self, packer: _Packer, rows: Sequence[Row], places: Mapping[int, int]) -> Iterator[WatchedSlots]:
        size = self._memory.tile_size
        for i, row in enumerate(rows):
            if seen := watched_span(row):
                tiles = [tile for tiles in row.image_tiles[seen.first : seen.last] for tile in tiles]
                packer.add(f"watched_{i}", (np.array(tiles)[:, None] * size + np.arange(size)).ravel())
                yield WatchedSlots(place=places[i], name=f"watched_{i}", layers=row.request.attention_layers)

    def _image_read(self, row: Row, seat: int) -> tuple[int, int, int]:
        """Returns the image positions that a decoding row sees: 0 … -1 if it sees none."""
        spans = image_spans(row.request.image_positions, row.end - 1, row.end)
        return (seat, *self._image_slots(row, spans[0].first, spans[0].last)) if spans else (seat, 0, 0)

    def _image_slots(self, row: Row, first: int, last: int) -> tuple[int, int]:
        """Returns where images first … last - 1 are among all slots of the row's images."""
        before = sum(len(tiles) for tiles in row.image_tiles[:first])
        count = sum(len(tiles) for tiles in row.image_tiles[first:last])
        return before * self._memory.tile_size, (before + count) * self._memory.tile_size

    def _query_blocks(
        self, first: int, count: int, seat: int, begin: int, end: int, *, is_causal: bool
    ) -> list[tuple[int, ...]]:
        """Splits `count` tokens into blocks; the first sees begin … end - 1, with `is_causal` each next one more."""
        size = self._query_block
        return [
            (first + done, min(size, count - done), seat, begin, end + (done if is_causal else 0))
            for done in range(0, count, size)
        ]

    def _add_sampling(
        self, packer: _Packer, rows: Sequence[Row], last: NDArray[np.int64], *, has_all: bool
    ) -> tuple[Mapping[int, str], int]:
        """`has_all`: all flat tokens have logits, not only the sampled ones."""
        sampled = [one for row in rows for one in row.sampled()]
        own = [
            token
            for row, end in zip(rows, last.tolist(), strict=True)
            if row.choices
            for token in range(end - row.num_drafts, end + 1)
        ]
        draws, edits = draws_of(sampled), LogitEdits.of(sampled, self._vocab_size)
        of_row = np.array(own, np.int64) if has_all else np.arange(len(own))
        packer.add("sampled", own)
        packer.add("draw_rows", of_row[[draw.row for draw in draws]])
        params = [(draw.params.temperature, draw.params.top_p, draw.params.min_p) for draw in draws]
        packer.add("draw_params", np.array(params, np.float64).reshape(-1, 3), "float64")
        packer.add("draw_top_ks", [min(draw.params.top_k, self._vocab_size) for draw in draws])
        packer.add("draw_starts", random_starts(draws), "int64")
        packer.add("edit_rows", of_row[edits.rows])
        packer.add("edit_tokens", edits.tokens)
        packer.add("edit_factors", edits.factors, "float32")
        packer.add("edit_shifts", edits.shifts, "float32")
        packer.add("mask_rows", of_row[edits.masked])
        packer.add("mask_words", edits.allowed)
        told = [at for at, draw in enumerate(draws) if sampled[draw.row].request.top_logprobs is not None]
        packer.add("told", told)
        packer.add("told_rows", of_row[[draws[at].row for at in told]])
        return edits.failed, max((sampled[draws[at].row].request.top_logprobs or 0 for at in told), default=0)

    def _add_prompts(self, packer: _Packer, rows: Sequence[Row], last: NDArray[np.int64]) -> tuple[PromptSpan, ...]:
        spans = []
        for i, row in enumerate(rows):
            if targets := row.prompt_targets:
                begin = int(last[i]) + 1 - len(row.tokens) + row.prompt_logprobs_start
                spans.append(
                    PromptSpan(begin=begin, count=len(targets), top=row.request.top_logprobs or 0, name=f"prompt_{i}")
                )
                packer.add(f"prompt_{i}", targets)
        return tuple(spans)
