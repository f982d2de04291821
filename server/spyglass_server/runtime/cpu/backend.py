"""The backend for CPUs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from spyglass_server.engine.messages import Logprobs
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.planning.plan import SLICE_OPERATIONS
from spyglass_server.runtime.backend import ForwardOutput, Memory
from spyglass_server.runtime.cpu.caches import PlannedCrossCache, PlannedKVCache
from spyglass_server.runtime.cpu.plan import BatchPlan, Planner, PromptTargets
from spyglass_server.runtime.cpu.programs import Programs
from spyglass_server.runtime.image_attention import AttentionSums, WatchedCrossCache
from spyglass_server.runtime.logit_edits import LogitEdits, apply_changes, apply_masks
from spyglass_server.runtime.model.layers import rotary_frequencies
from spyglass_server.runtime.model.text import CrossCache, TextModel
from spyglass_server.runtime.native.kernels import Kernels
from spyglass_server.runtime.outputs import NOT_FINITE, draws_of, row_outputs, sampled_rows, with_drafted
from spyglass_server.runtime.sampler import TopLogprobs, sample_finite, top_logprobs

_PROMPT_LOGITS_ROWS = 64
"""Prompt positions per logits batch, to bound memory."""


class CpuBackend:
    """Implements `Backend`: computes immediately, so nothing is ever pending."""

    looks_ahead = False
    slice_tokens = 512
    slice_operations = SLICE_OPERATIONS["cpu"]

    def __init__(self, model: TextModel, memory: Memory, device: torch.device, kernels: Kernels | None = None) -> None:
        self._model, self._memory, self._device, self._kernels = model, memory, device, kernels
        config, heads = model.config, model.config.num_heads
        self._planner = Planner(
            page_size=memory.page_size,
            tile_size=memory.tile_size,
            dtype=memory.text.dtype,
            device=device,
            run_lengths=kernels.run_lengths(heads, config.num_kv_heads, config.head_dim) if kernels else None,
        )
        self._frequencies = rotary_frequencies(model.config.rope, model.config.head_dim, device)
        self._programs = Programs(model, memory, self._frequencies, kernels) if kernels else None

    def plan(self, rows: Sequence[Row]) -> BatchPlan:
        return self._planner.batch(rows)

    def forward(self, plan: BatchPlan) -> ForwardOutput:
        if self._programs and (logits := self._programs.logits(plan)) is not None:
            return ForwardOutput(logits=logits)
        sums = AttentionSums(plan.cross.watched if plan.cross else (), self._model)
        hidden = self._hidden(plan, sums)
        return ForwardOutput(
            logits=self._model.logits(hidden[plan.sampled]) if len(plan.sampled) else None,
            prompts=tuple(self._prompt_logprobs(targets, hidden) for targets in plan.prompts),
            attention=tuple(sums.averages()),
        )

    def sample(self, rows: Sequence[Row], plan: BatchPlan, output: ForwardOutput) -> Pending:
        outputs = with_drafted(rows, self._sample(sampled_rows(rows), output))
        return lambda: outputs

    def follow(self, plan: BatchPlan) -> None:
        self.forward(plan)

    def logits(self, row: Row) -> Tensor:
        return self._model.logits(self._hidden(self.plan([row]), AttentionSums((), self._model)))

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)

    def check(self) -> None:
        """CPUs are never lost."""

    def _hidden(self, plan: BatchPlan, sums: AttentionSums) -> Tensor:
        heads, kernels = self._model.config.num_heads, self._kernels
        text = PlannedKVCache(self._memory.text, plan, self._frequencies, heads, kernels)
        images: CrossCache | None = PlannedCrossCache(self._memory.images, plan.cross, kernels) if plan.cross else None
        if images is not None and sums.is_wanted:
            images = WatchedCrossCache(images, self._memory.images, sums)
        hidden: Tensor = self._model(plan.tokens, text, images)
        return hidden

    def _prompt_logprobs(self, targets: PromptTargets, hidden: Tensor) -> TopLogprobs:
        """Computes the logprobs of prompt tokens a few at a time: logits are large."""
        states = hidden[targets.begin : targets.begin + len(targets.tokens)]
        pieces = zip(
            torch.split(states, _PROMPT_LOGITS_ROWS), torch.split(targets.tokens, _PROMPT_LOGITS_ROWS), strict=True
        )
        found = [top_logprobs(self._model.logits(some), tokens, targets.top) for some, tokens in pieces]
        return TopLogprobs(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _sample(self, rows: Sequence[Row], output: ForwardOutput) -> list[RowOutput]:
        prompts = (found.to_messages() for found in output.prompts)
        attention = (weights.numpy() for weights in output.attention)
        if output.logits is None:
            return row_outputs(rows, (), {}, iter(()), prompts, attention)
        sampled, raw = [row for row in rows if row.choices], output.logits
        draws = draws_of(sampled)
        edits = LogitEdits.of(sampled, raw.shape[1])
        sample = self._kernels.sample if self._kernels else sample_finite
        tokens = sample(edited_logits(raw, edits), draws)
        if NOT_FINITE in tokens:
            raw = raw.nan_to_num()
        return row_outputs(rows, tokens, edits.failed, _logprobs(sampled, raw, tokens), prompts, attention)


def edited_logits(logits: Tensor, edits: LogitEdits) -> Tensor:
    """Returns logits [rows, vocabulary] with the rows' edits; the same tensor if there are none."""
    if edits.is_empty:
        return logits
    logits = logits.clone()
    apply_changes(logits, *map(torch.from_numpy, (edits.rows, edits.tokens, edits.factors, edits.shifts)))
    if len(edits.masked):
        apply_masks(logits, torch.from_numpy(edits.masked), torch.from_numpy(edits.allowed))
    return logits


def _logprobs(rows: Sequence[Row], logits: Tensor, tokens: Sequence[int]) -> Iterator[Logprobs]:
    """Yields the logprobs of each draw, for rows that request them, from these rows' logits."""
    drawn = iter(tokens)
    for i, row in enumerate(rows):
        chosen = [max(next(drawn), 0) for _ in row.choices]
        if (top := row.request.top_logprobs) is not None:
            yield from top_logprobs(logits[i].expand(len(chosen), -1), torch.tensor(chosen), top).to_messages()
