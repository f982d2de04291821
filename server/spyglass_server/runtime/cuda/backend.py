"""The backend for GPUs."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.messages import Logprobs
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.planning.plan import SLICE_OPERATIONS
from spyglass_server.runtime.backend import ForwardOutput, Memory
from spyglass_server.runtime.cuda.caches import PagedCrossCache, PagedKVCache, RecordedCrossCache
from spyglass_server.runtime.cuda.device import Compute, Device
from spyglass_server.runtime.cuda.graphs import DecodeGraphs
from spyglass_server.runtime.cuda.plan import (
    GraphShape,
    PagedPlan,
    PagedPlanner,
    PromptSpan,
    WatchedSlots,
    recorded_shapes,
)
from spyglass_server.runtime.cuda.seats import Seats
from spyglass_server.runtime.image_attention import AttentionSums, Watched, WatchedCrossCache
from spyglass_server.runtime.kernels.attention import QUERY_BLOCK
from spyglass_server.runtime.kernels.layers import resolve_tokens
from spyglass_server.runtime.kernels.sampling import sample_tokens
from spyglass_server.runtime.logit_edits import apply_changes, apply_masks
from spyglass_server.runtime.model.layers import rotary_frequencies
from spyglass_server.runtime.model.text import CrossCache, TextModel
from spyglass_server.runtime.outputs import row_outputs, sampled_rows, with_drafted
from spyglass_server.runtime.sampler import TopLogprobs, top_logprobs

_PROMPT_LOGITS_ROWS = 256
"""Prompt positions per logits batch, to bound memory."""
_RECORDED_NUMBERS = 1 << 20
"""Maximum numbers in the plan of a recorded step; steps with more are computed operation by operation."""
_MAX_DRAWS = 1 << 12


class CudaBackend:
    """Implements `Backend`."""

    looks_ahead = True
    slice_tokens = 1 << 20  # a layer at once
    slice_operations = SLICE_OPERATIONS["cuda"]

    def __init__(self, model: TextModel, memory: Memory, device: Device) -> None:
        self._model, self._memory, self._device = model, memory, device
        place = device.device
        max_pages = -(-memory.max_tokens // memory.page_size)
        self._seats = Seats(memory.max_batch, max_pages, memory.num_tiles, memory.num_pages, place)
        self._planner = PagedPlanner(memory, self._seats, model.config.vocab_size, QUERY_BLOCK)
        self._frequencies = rotary_frequencies(model.config.rope, model.config.head_dim, place)
        self._recorded = torch.zeros(_RECORDED_NUMBERS, dtype=torch.int32, device=place)
        self._computed = torch.zeros(_RECORDED_NUMBERS, dtype=torch.int32, device=place)
        self._tokens = torch.zeros(_MAX_DRAWS, dtype=torch.int32, device=place)
        """The tokens that the last step has drawn."""
        self._graphs = DecodeGraphs(device.record)
        if memory.records_steps:
            self._graphs.record(recorded_shapes(memory.max_batch), self._prepared)
        self._planner.shapes = self._graphs.shapes

    def plan(self, rows: Sequence[Row]) -> PagedPlan:
        plan = self._planner.plan(rows)
        if plan.shape and len(plan.numbers) > _RECORDED_NUMBERS:
            return self._planner.in_shape(rows, None)
        return plan

    def forward(self, plan: PagedPlan) -> ForwardOutput:
        numbers = self._upload(plan)
        if plan.shape is not None:
            return ForwardOutput(logits=self._graphs.replay(plan.shape))
        sums = AttentionSums([_watched(plan, one, numbers) for one in plan.watched], self._model)
        hidden = self._hidden(plan, numbers, sums)
        sampled = plan.section("sampled", numbers)
        return ForwardOutput(
            logits=self._model.logits(hidden.index_select(0, sampled)) if len(sampled) else None,
            prompts=tuple(self._prompt_logprobs(plan, span, hidden, numbers) for span in plan.prompts),
            attention=tuple(sums.averages()),
        )

    def sample(self, rows: Sequence[Row], plan: PagedPlan, output: ForwardOutput) -> Pending:
        numbers = self._recorded if plan.shape else self._computed
        results = []
        if output.logits is not None and plan.count("draw_rows"):
            results = self._sample(plan, output.logits, numbers)
        self._model.mesh.share(self._tokens)  # the next step may begin with them on all ranks
        results += [part for found in output.prompts for part in found]
        results += output.attention
        if not results:
            return lambda: row_outputs(rows, (), plan.failed, iter(()), iter(()), iter(()))
        parts = [part.reshape(-1) for part in results]
        flat = [part.view(torch.int32) if part.dtype is torch.float32 else part.int() for part in parts]
        download = self._device.download(torch.cat(flat) if len(flat) > 1 else flat[0])
        return lambda: _outputs(rows, plan, download())

    def follow(self, plan: PagedPlan) -> None:
        self.forward(plan)
        self._model.mesh.share(self._tokens)

    def logits(self, row: Row) -> Tensor:
        plan = self._planner.in_shape([row], None)
        return self._model.logits(self._hidden(plan, self._upload(plan), AttentionSums((), self._model)))

    def to_device(self, tensor: Tensor) -> Tensor:
        return self._device.to_device(tensor)

    def check(self) -> None:
        self._device.check()

    def _prepared(self, shape: GraphShape) -> Compute:
        """Returns the computation of a shape, with only spare rows on the device."""
        plan = self._planner.in_shape((), shape)
        return partial(self._logits_of_all, plan, self._upload(plan))

    def _upload(self, plan: PagedPlan) -> Tensor:
        """Copies a plan's numbers to the device, and new entries of the block tables to their places."""
        if plan.shape is None and len(plan.numbers) > len(self._computed):
            self._computed = torch.zeros(2 * len(plan.numbers), dtype=torch.int32, device=self._computed.device)
        numbers = self._computed if plan.shape is None else self._recorded
        self._device.upload(plan.numbers, numbers)
        if plan.count("table_places"):
            places = plan.section("table_places", numbers).long()
            self._seats.all.index_copy_(0, places, plan.section("table_values", numbers))
        return numbers

    def _logits_of_all(self, plan: PagedPlan, numbers: Tensor) -> Tensor:
        return self._model.logits(self._hidden(plan, numbers, AttentionSums((), self._model)))

    def _hidden(self, plan: PagedPlan, numbers: Tensor, sums: AttentionSums) -> Tensor:
        text = PagedKVCache(self._memory, self._seats, plan, numbers, self._frequencies, self._model.config.num_heads)
        images: CrossCache | None = None
        if plan.shape is not None:
            if plan.shape.sees_images:
                images = RecordedCrossCache(self._memory, self._seats, plan, numbers)
        elif plan.count("image_index"):
            images = PagedCrossCache(self._memory, self._seats, plan, numbers)
            if sums.is_wanted:
                images = WatchedCrossCache(images, self._memory.images, sums)
        tokens = resolve_tokens(plan.section("tokens", numbers), self._tokens)
        hidden: Tensor = self._model(tokens, text, images)
        return hidden

    def _prompt_logprobs(self, plan: PagedPlan, span: PromptSpan, hidden: Tensor, numbers: Tensor) -> TopLogprobs:
        """Computes the logprobs of prompt tokens a few at a time: logits are large."""
        tokens = plan.section(span.name, numbers).long()
        found = []
        for first in range(0, span.count, _PROMPT_LOGITS_ROWS):
            last = min(first + _PROMPT_LOGITS_ROWS, span.count)
            logits = self._model.logits(hidden[span.begin + first : span.begin + last])
            found.append(top_logprobs(logits, tokens[first:last], span.top))
        return TopLogprobs(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _sample(self, plan: PagedPlan, logits: Tensor, numbers: Tensor) -> list[Tensor]:
        """Returns the tokens of all draws, and the logprobs of draws that request them."""
        edited = logits
        if plan.count("edit_rows") or plan.count("mask_rows"):
            edited = logits.clone()
            rows, changed, factors, shifts = (
                plan.section(f"edit_{name}", numbers) for name in ("rows", "tokens", "factors", "shifts")
            )
            apply_changes(edited, rows, changed, factors, shifts)
        if plan.count("mask_rows"):
            apply_masks(edited, plan.section("mask_rows", numbers), plan.section("mask_words", numbers))
        tokens = self._tokens[: plan.count("draw_rows")]
        rows, params, top_ks, starts = (
            plan.section(f"draw_{name}", numbers) for name in ("rows", "params", "top_ks", "starts")
        )
        sample_tokens(edited, rows, params, top_ks, starts, tokens)
        if not plan.count("told"):
            return [tokens]
        chosen = tokens.index_select(0, plan.section("told", numbers)).clamp(min=0).long()
        told = logits.index_select(0, plan.section("told_rows", numbers))
        return [tokens, *top_logprobs(told, chosen, plan.max_told)]


def _watched(plan: PagedPlan, one: WatchedSlots, numbers: Tensor) -> Watched:
    return Watched(place=one.place, slots=plan.section(one.name, numbers).long(), layers=one.layers)


def _outputs(given: Sequence[Row], plan: PagedPlan, numbers: NDArray[np.int32]) -> list[RowOutput]:
    """Builds the rows' outputs from the numbers that the device returned."""
    rows = sampled_rows(given)
    num_draws = plan.count("draw_rows")
    tokens, rest = numbers[:num_draws].tolist(), numbers[num_draws:]
    told, rest = _logprobs(rest, plan.count("told"), plan.max_told)
    prompts = []
    for span in plan.prompts:
        found, rest = _logprobs(rest, span.count, span.top)
        prompts.append(found)
    tops = (row.request.top_logprobs for row in rows if row.request.top_logprobs is not None for _ in row.choices)
    cut = (Logprobs(one.chosen, one.top_tokens[:top], one.top[:top]) for one, top in zip(told, tops, strict=True))
    attention = []
    for one in plan.watched:
        weights, rest = np.split(rest, [plan.count(one.name)])
        attention.append(weights.view(np.float32))
    return with_drafted(given, row_outputs(rows, tokens, plan.failed, cut, iter(prompts), iter(attention)))


def _logprobs(numbers: NDArray[np.int32], count: int, top: int) -> tuple[list[Logprobs], NDArray[np.int32]]:
    """Reads `TopLogprobs` of `count` tokens; also returns the numbers after them."""
    chosen, top_tokens, tops, rest = np.split(numbers, np.cumsum([count, count * top, count * top]))
    found: Iterator[tuple[float, list[int], list[float]]] = zip(
        chosen.view(np.float32).tolist(),
        top_tokens.reshape(count, top).tolist(),
        tops.view(np.float32).reshape(count, top).tolist(),
        strict=True,
    )
    return [Logprobs(one, tuple(ids), tuple(best)) for one, ids, best in found], rest
