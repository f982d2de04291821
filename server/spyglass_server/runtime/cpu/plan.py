"""The plan of a batch: which flat token belongs to which sequence, slot and image, and which attend together.

A slot is the index where a token's keys and values are stored.

    flat tokens   [ decode rows, longest context first: t | t | t ][ each alone: t t t | t t t t | t ]
    slots         block * block_size + offset; blocks are pages of text and tiles of images

With our own kernels, decoding tokens come first, and each token has a list of its slots. Without them, tokens with
similar context lengths attend together: shorter contexts are padded with their own first slot, which is masked. Tokens
with long contexts in contiguous slots attend alone, and so does each prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.image_attention import Watched, watched_span
from spyglass_server.runtime.image_spans import ImageSpan, image_spans
from spyglass_server.runtime.native.reads import RunLengths, TokenReads

_MAX_PADDING = 256
"""Maximum padding of a token within an attention group, in slots: reading more takes longer than a separate call."""
_LONG = 1024
"""Contiguous slots from which on a token attends alone, since that copies nothing."""
_RUN = 8
"""Tokens in a run that read the same slots one after another, when our own kernels compute each as if it were alone."""

Slots = NDArray[np.int64] | range
"""The slots that a token sees, in order; a range if they are contiguous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tokens begin … end - 1, in rows of equal length, which attend together to slots [rows, context].

    A slice of slots means a single row whose slots are contiguous. `mask`, in the model's dtype, is added to the
    scores: [rows, 1, 1, context], or [tokens, context] for a single row. Without a mask a token sees all slots or, if
    `is_causal`, with as many slots as tokens, those up to its own.
    """

    begin: int
    end: int
    slots: Tensor | slice
    mask: Tensor | None = None
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class CrossPlan:
    """The flat tokens that see an image, and what they attend to, counted along `index`.

    `watched` are the tokens whose attention is returned, in the order of the given rows.
    """

    index: Tensor
    reads: tuple[Group, ...] | TokenReads
    watched: tuple[Watched, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Prompt tokens [tokens] whose logprobs flat tokens begin, begin + 1, … give, each with `top` alternatives."""

    begin: int
    tokens: Tensor
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch as tensors: all that the model's forward pass needs to know about it.

    Tokens, their positions and slots (`slot_mapping`) are flat, [tokens]; `reads` is the text that they attend to:
    groups or, with our own kernels, slots for each token.
    """

    tokens: Tensor
    positions: Tensor
    slot_mapping: Tensor
    reads: tuple[Group, ...] | TokenReads
    cross: CrossPlan | None
    sampled: Tensor
    """The flat index of each token whose logits are sampled, in the order of the given rows."""
    prompts: tuple[PromptTargets, ...] = ()
    """For the rows that request prompt logprobs, in the order of the given rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Flat tokens that read the same slots: all of them or, with `is_causal`, one fewer for each token before the last.

    `is_alone`: each token is computed separately.
    """

    name: int
    count: int
    slots: Slots
    is_causal: bool
    is_alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Makes plans for a model in `dtype`. `page_size` and `tile_size` are in slots.

    `run_lengths` are for our own kernels; None without them.
    """

    page_size: int
    tile_size: int
    dtype: torch.dtype
    device: torch.device
    run_lengths: RunLengths | None

    def batch(self, rows: Sequence[Row]) -> BatchPlan:
        """Lays out rows as one batch."""
        own = [_slots(row.pages, self.page_size, row.end) for row in rows]
        reads, order = self._arrange(
            [
                _Reader(name=i, count=len(row.tokens), slots=own[i], is_causal=True, is_alone=self._is_alone(row))
                for i, row in enumerate(rows)
            ]
        )
        ends = np.empty(len(rows), np.int64)
        ends[order] = np.cumsum([len(rows[i].tokens) for i in order])
        return BatchPlan(
            tokens=self._numbers(token for i in order for token in rows[i].tokens),
            positions=self._numbers(p for i in order for p in range(rows[i].start, rows[i].end)),
            slot_mapping=torch.from_numpy(np.concatenate([_array(own[i][rows[i].start :]) for i in order])).to(
                self.device
            ),
            reads=reads,
            cross=self._cross(rows, order),
            sampled=self._numbers(
                token
                for end, row in zip(ends.tolist(), rows, strict=True)
                if row.choices
                for token in range(end - 1 - row.num_drafts, end)
            ),
            prompts=self._prompts(rows, ends.tolist()),
        )

    def _prompts(self, rows: Sequence[Row], ends: Iterable[int]) -> tuple[PromptTargets, ...]:
        """Returns the targets of rows that request prompt logprobs. `ends` are where the rows end in the batch."""
        return tuple(
            PromptTargets(
                end - len(row.tokens) + row.prompt_logprobs_start,
                self._numbers(row.prompt_targets),
                row.request.top_logprobs or 0,
            )
            for end, row in zip(ends, rows, strict=True)
            if row.prompt_targets
        )

    def _cross(self, rows: Sequence[Row], order: Sequence[int]) -> CrossPlan | None:
        readers: list[_Reader] = []  # named by their first token
        watched: dict[int, tuple[int, ImageSpan]] = {}
        begin = 0
        for i in order:
            row = rows[i]
            for span in image_spans(row.request.image_positions, row.start, row.end):
                first, count = begin + span.start - row.start, span.end - span.start
                slots, alone = self._slots_of(row, span), self._is_alone(row)
                readers.append(_Reader(name=first, count=count, slots=slots, is_causal=False, is_alone=alone))
            begin += len(row.tokens)
            if last_span := watched_span(row):
                watched[i] = begin - 1, last_span
        if not readers:
            return None
        reads, firsts = self._arrange(readers)
        counts = {reader.name: reader.count for reader in readers}
        index = [token for first in firsts for token in range(first, first + counts[first])]
        places = [self._watched(rows[i], index.index(watched[i][0]), watched[i][1]) for i in sorted(watched)]
        return CrossPlan(self._numbers(index), reads, tuple(places))

    def _watched(self, row: Row, place: int, span: ImageSpan) -> Watched:
        slots = torch.from_numpy(_array(self._slots_of(row, span))).to(self.device)
        return Watched(place=place, slots=slots, layers=row.request.attention_layers)

    def _is_alone(self, row: Row) -> bool:
        """Whether each of a row's tokens is computed separately: an answer's token and the drafts after it must get the
        same results as without other tokens. So are the tokens of a short prompt."""
        is_of_answer = len(row.tokens) == 1 + row.num_drafts
        return is_of_answer or (self.run_lengths is not None and self.run_lengths.leave_idle(len(row.tokens)))

    def _slots_of(self, row: Row, span: ImageSpan) -> Slots:
        """The slots of a span's images."""
        tiles = [tile for tiles in row.image_tiles[span.first : span.last] for tile in tiles]
        return _slots(tiles, self.tile_size, len(tiles) * self.tile_size)

    def _arrange(self, readers: Sequence[_Reader]) -> tuple[tuple[Group, ...] | TokenReads, list[int]]:
        """Returns what readers attend to, and the order of their tokens."""
        if self.run_lengths:
            readers = sorted(readers, key=lambda reader: not reader.is_alone)
            return _token_reads(readers, self.run_lengths), [reader.name for reader in readers]
        groups: list[Group] = []
        order: list[int] = []
        begin = 0
        for members in _together(readers):
            end = begin + sum(reader.count for reader in members)
            groups.append(self._group(begin, end, members))
            order += [reader.name for reader in members]
            begin = end
        return tuple(groups), order

    def _group(self, begin: int, end: int, members: Sequence[_Reader]) -> Group:
        """A group of readers, longest context first."""
        first, longest = members[0], len(members[0].slots)
        if len(members) > 1:
            slots, seen = _padded([reader.slots for reader in members], longest)
            return Group(
                begin=begin, end=end, slots=slots.to(self.device), mask=None if seen.all() else self._mask(seen)
            )
        where: Tensor | slice
        if isinstance(first.slots, range):
            where = slice(first.slots.start, first.slots.stop)
        else:
            where = torch.from_numpy(first.slots)[None].to(self.device)
        if not first.is_causal or first.count in (1, longest):
            return Group(begin=begin, end=end, slots=where, is_causal=first.is_causal and first.count > 1)
        seen = torch.ones(first.count, longest, dtype=torch.bool).tril(longest - first.count)
        return Group(begin=begin, end=end, slots=where, mask=self._mask(seen))

    def _mask(self, seen: Tensor) -> Tensor:
        """Zero where a slot is seen, minus infinity elsewhere."""
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, -torch.inf).to(self.device)

    def _numbers(self, numbers: Iterable[int]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.int64, device=self.device)


def places(blocks: Sequence[int], size: int) -> NDArray[np.int64]:
    """The slots of blocks."""
    slots: NDArray[np.int64] = (np.asarray(blocks, np.int64)[:, None] * size + np.arange(size)).ravel()
    return slots


def _slots(blocks: Sequence[int], size: int, count: int) -> Slots:
    """The first `count` slots of blocks."""
    used = blocks[: -(-count // size)]
    if (np.diff(used) == 1).all():
        return range(used[0] * size, used[0] * size + count)
    return places(used, size)[:count]


def _token_reads(readers: Sequence[_Reader], lengths: RunLengths) -> TokenReads:
    """Returns the reads of `readers`, which must be sorted with the ones that are alone first."""
    begins: list[int] = []
    counts: list[int] = []
    runs: list[int] = []
    begin = num_exact = 0
    for reader in readers:
        length = _RUN if reader.is_alone else lengths.of(reader.count)
        runs += range(len(counts), len(counts) + reader.count, length)
        num_exact = len(runs) if reader.is_alone else num_exact
        whole = len(reader.slots)
        counts += [whole - back if reader.is_causal else whole for back in reversed(range(reader.count))]
        begins += [begin] * reader.count
        begin += whole
    return TokenReads(
        slots=torch.from_numpy(np.concatenate([_array(reader.slots) for reader in readers])),
        begins=torch.tensor(begins),
        counts=torch.tensor(counts),
        runs=torch.tensor([*runs, len(counts)]),
        num_exact=num_exact,
    )


def _together(readers: Sequence[_Reader]) -> list[list[_Reader]]:
    """Groups single tokens by context length; each longer run of tokens is alone."""
    groups: list[list[_Reader]] = []
    alone: list[list[_Reader]] = []
    for reader in sorted(readers, key=lambda r: -len(r.slots)):
        if reader.count > 1 or (isinstance(reader.slots, range) and len(reader.slots) >= _LONG):
            alone.append([reader])
        elif groups and len(groups[-1][0].slots) - len(reader.slots) <= _MAX_PADDING:
            groups[-1].append(reader)
        else:
            groups.append([reader])
    return groups + alone


def _padded(slots: Sequence[Slots], longest: int) -> tuple[Tensor, Tensor]:
    """Returns slots [rows, longest] of single tokens, and which of them each token sees, [rows, 1, 1, longest]."""
    lengths = np.array([len(one) for one in slots])[:, None]
    filled = np.empty((len(slots), longest), np.int64)
    for row, own in zip(filled, slots, strict=True):
        row[: len(own)] = _array(own)
        row[len(own) :] = own[0]
    return torch.from_numpy(filled), torch.from_numpy(np.arange(longest) < lengths)[:, None, None]


def _array(slots: Slots) -> NDArray[np.int64]:
    return np.arange(slots.start, slots.stop) if isinstance(slots, range) else slots
