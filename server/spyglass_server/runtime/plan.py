"""The plan of a batch: which flat token belongs to which sequence, slot and image.

Owns how rows are laid out side by side, which of them attend together, and attention to images, whose states
a plan holds. Knows no scheduling, the plan is made from the rows that it is given, and not where keys and values
of text live.

    flat tokens   [ decode rows, longest context first: t | t | t ][ prompts: t t t | t t t t ]
    slots         page * page_size + offset of each, where its key and value go

Rows that decode attend together, as many as have contexts of about one length; the shorter ones read
their own first token in the places that they do not have, and are told not to look there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.spans import image_spans
from spyglass_server.engine.types import ImageKey, Row
from spyglass_server.runtime.model.layers import grouped_attention

_MOST_PADDING = 256
"""Tokens of context that a row may lack to attend with the longest one: to read more takes longer than a call."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Flat tokens begin … end - 1: rows of equally many tokens, the last ones of their sequences.

    `slots` [rows, context] are those of their sequences. `mask`, of the model's type, is added to the scores,
    [rows, 1, 1, context] or for a single row [tokens, context]. Without one all is seen, or, when `is_causal`,
    what came before.
    """

    begin: int
    end: int
    slots: Tensor
    mask: Tensor | None
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class CrossSpan:
    """Of the tokens that see images, begin … end - 1 see these; each [layers, 2, kv_heads, tokens, head_dim]."""

    begin: int
    end: int
    states: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class CrossPlan:
    """The flat tokens that see an image, and what they see."""

    index: Tensor
    spans: tuple[CrossSpan, ...]

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of q [seeing tokens, heads, head_dim] to the images' states of one cross layer."""
        parts = []
        for span in self.spans:
            seen = [states[layer] for states in span.states]
            k, v = seen[0] if len(seen) == 1 else torch.cat(seen, dim=2)
            parts.append(grouped_attention(q[None, span.begin : span.end], k[None], v[None]))
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A flat batch: tokens, their positions and slots [tokens], and the groups of rows that they belong to."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    groups: tuple[RowGroup, ...]
    cross: CrossPlan | None
    last: Tensor
    """The flat index of each row's last token, [rows], in the order in which the rows were given."""


def plan_batch(
    rows: Sequence[Row], page_size: int, states: Mapping[ImageKey, Tensor], dtype: torch.dtype, device: torch.device
) -> BatchPlan:
    """Lays rows side by side. `states` has those of all images that the rows see; `dtype` is the model's."""
    slots = [_slots(row, page_size) for row in rows]
    groups: list[RowGroup] = []
    order: list[int] = []
    begin = 0
    for members in _together(rows):
        end = begin + sum(len(rows[i].tokens) for i in members)
        groups.append(_group(begin, end, [rows[i] for i in members], [slots[i] for i in members], dtype, device))
        order += members
        begin = end
    last = np.empty(len(rows), np.int64)
    last[order] = np.cumsum([len(rows[i].tokens) for i in order]) - 1
    return BatchPlan(
        tokens=torch.tensor([token for i in order for token in rows[i].tokens], device=device),
        positions=torch.tensor([p for i in order for p in range(rows[i].start, rows[i].end)], device=device),
        slots=torch.from_numpy(np.concatenate([slots[i][rows[i].start :] for i in order])).to(device),
        groups=tuple(groups),
        cross=_plan_cross([rows[i] for i in order], states, device),
        last=torch.from_numpy(last).to(device),
    )


def _slots(row: Row, page_size: int) -> NDArray[np.int64]:
    """The slots of a row's sequence, [context]."""
    pages = np.asarray(row.pages, np.int64)[:, None]
    slots: NDArray[np.int64] = (pages * page_size + np.arange(page_size)).ravel()[: row.end]
    return slots


def _together(rows: Sequence[Row]) -> list[list[int]]:
    """The rows in groups that attend together: those that decode by length, and each prompt alone."""
    decoding = sorted((i for i, row in enumerate(rows) if len(row.tokens) == 1), key=lambda i: -rows[i].end)
    groups: list[list[int]] = []
    for i in decoding:
        if groups and rows[groups[-1][0]].end - rows[i].end <= _MOST_PADDING:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups + [[i] for i, row in enumerate(rows) if len(row.tokens) > 1]


def _group(
    begin: int,
    end: int,
    rows: Sequence[Row],
    slots: Sequence[NDArray[np.int64]],
    dtype: torch.dtype,
    device: torch.device,
) -> RowGroup:
    """A group of rows, the one with the longest context first."""
    first, longest = rows[0], rows[0].end
    if len(rows) == 1:
        mask = None
        if len(first.tokens) > 1 and first.start:
            mask = _additive(torch.ones(len(first.tokens), longest, dtype=torch.bool).tril(first.start), dtype, device)
        return RowGroup(begin, end, torch.from_numpy(slots[0])[None].to(device), mask, is_causal=not first.start)
    padded = torch.from_numpy(np.stack([np.pad(s, (0, longest - len(s)), constant_values=s[0]) for s in slots]))
    lengths = torch.tensor([row.end for row in rows])
    mask = None
    if int(lengths.min()) < longest:
        mask = _additive((torch.arange(longest) < lengths[:, None])[:, None, None], dtype, device)
    return RowGroup(begin, end, padded.to(device), mask)


def _additive(seen: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zero where something is seen, else minus infinity."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


def _plan_cross(rows: Sequence[Row], states: Mapping[ImageKey, Tensor], device: torch.device) -> CrossPlan | None:
    index: list[int] = []
    spans: list[CrossSpan] = []
    begin = 0
    for row in rows:
        for span in image_spans(row.image_positions, row.start, row.end):
            first = begin + span.start - row.start
            length = span.end - span.start
            seen = tuple(states[key] for key in row.image_keys[span.first : span.last])
            spans.append(CrossSpan(len(index), len(index) + length, seen))
            index += range(first, first + length)
        begin += len(row.tokens)
    return CrossPlan(torch.tensor(index, device=device), tuple(spans)) if spans else None
