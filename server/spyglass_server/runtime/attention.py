"""Where keys and values live, and attention over them.

Owns the paged cache of text and the plan of a batch: which flat token belongs to which sequence,
page and image. Knows no scheduling: the plan is made from the rows that it is given.

    flat tokens   [ row 0: t t t | row 1: t | row 2: t t t t ]
    slots         page * page_size + offset of each, where its key and value go
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spyglass_server.engine.spans import image_spans
from spyglass_server.engine.types import ImageKey, Row
from spyglass_server.runtime.config import TextConfig
from spyglass_server.runtime.model.layers import grouped_attention


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Flat tokens begin … end - 1 are the last ones of a sequence of `context` tokens."""

    begin: int
    end: int
    context: int
    pages: Tensor
    mask: Tensor | None


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
            parts.append(grouped_attention(q[span.begin : span.end], k, v))
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A flat batch: tokens, their positions and slots [tokens], and the rows that they belong to."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    rows: tuple[RowPlan, ...]
    cross: CrossPlan | None
    last: Tensor
    """The flat index of each row's last token, [rows]."""


class PagedCache:
    """Keys and values of text in pages of a fixed number of tokens."""

    def __init__(
        self, config: TextConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_self_layers, 2, num_pages, page_size, config.num_kv_heads, config.head_dim)
        self._pages = torch.empty(shape, dtype=dtype, device=device)  # memory is used when it is first written
        self.page_size = page_size

    @staticmethod
    def page_bytes(config: TextConfig, page_size: int, dtype: torch.dtype) -> int:
        """How much memory one page takes."""
        return config.num_self_layers * 2 * page_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    def write(self, layer: int, plan: BatchPlan, k: Tensor, v: Tensor) -> None:
        """Stores keys and values [tokens, kv_heads, head_dim] of the batch's tokens."""
        for which, values in enumerate((k, v)):
            self._pages[layer, which].flatten(0, 1).index_copy_(0, plan.slots, values)

    def attend(self, layer: int, plan: BatchPlan, q: Tensor) -> Tensor:
        """Attention of q [tokens, heads, head_dim], each to its own sequence so far."""
        parts = []
        for row in plan.rows:
            pages = self._pages[layer].index_select(1, row.pages).flatten(1, 2)[:, : row.context]
            k, v = pages.transpose(1, 2)
            parts.append(grouped_attention(q[row.begin : row.end], k, v, row.mask))
        return torch.cat(parts)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages, each (source, target); all sources are read before any target is written."""
        sources, targets = torch.tensor(pairs, device=self._pages.device).T
        self._pages[:, :, targets] = self._pages[:, :, sources]


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """The cache as the layers see it during one batch."""

    cache: PagedCache
    plan: BatchPlan

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.cache.write(layer, self.plan, k, v)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self.cache.attend(layer, self.plan, q)


def plan_batch(
    rows: Sequence[Row], page_size: int, states: Mapping[ImageKey, Tensor], device: torch.device
) -> BatchPlan:
    """Lays rows side by side. `states` has those of all images that the rows see."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    row_plans: list[RowPlan] = []
    for row in rows:
        begin = len(tokens)
        tokens += row.tokens
        positions += range(row.start, row.end)
        slots += [row.pages[p // page_size] * page_size + p % page_size for p in range(row.start, row.end)]
        pages = torch.tensor(row.pages[: -(-row.end // page_size)], device=device)
        row_plans.append(RowPlan(begin, len(tokens), row.end, pages, _causal_mask(row, device)))
    return BatchPlan(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        rows=tuple(row_plans),
        cross=_plan_cross(rows, states, device),
        last=torch.tensor([row.end - 1 for row in row_plans], device=device),
    )


def _causal_mask(row: Row, device: torch.device) -> Tensor | None:
    """True where a token sees a position, [tokens, context]; a single token sees all."""
    count = len(row.tokens)
    if count == 1:
        return None
    return torch.ones(count, row.end, dtype=torch.bool, device=device).tril(row.start)


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
