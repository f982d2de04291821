"""The backend for CPUs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from spyglass_server.engine.messages import Logprobs
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.planning.plan import SLICE_OPERATIONS
from spyglass_server.runtime.backend import ForwardOutput, Memory
from spyglass_server.runtime.cpu.caches import GroupedCrossCache, GroupedKVCache
from spyglass_server.runtime.cpu.plan import BatchPlan, Planner, PromptTargets
from spyglass_server.runtime.logit_edits import LogitEdits, apply_changes, apply_masks
from spyglass_server.runtime.model.layers import rotary_frequencies
from spyglass_server.runtime.model.text import TextModel
from spyglass_server.runtime.outputs import NOT_FINITE, draws_of, row_outputs
from spyglass_server.runtime.sampler import TopLogprobs, sample, top_logprobs

_PROMPT_LOGITS_ROWS = 64
"""Prompt positions per logits batch, to bound memory."""


class CpuBackend:
    """Implements `Backend`: computes at once, so nothing is ever pending."""

    looks_ahead = False
    slice_tokens = 512
    slice_operations = SLICE_OPERATIONS["cpu"]

    def __init__(self, model: TextModel, memory: Memory, device: torch.device) -> None:
        self._model, self._memory, self._device = model, memory, device
        self._planner = Planner(
            page_size=memory.page_size, tile_size=memory.tile_size, dtype=model.norm.weight.dtype, device=device
        )
        self._frequencies = rotary_frequencies(model.config.rope, model.config.head_dim, device)

    def plan(self, rows: Sequence[Row]) -> BatchPlan:
        return self._planner.batch(rows)

    def forward(self, plan: BatchPlan) -> ForwardOutput:
        hidden = self._hidden(plan)
        return ForwardOutput(
            logits=self._model.logits(hidden[plan.sampled]) if len(plan.sampled) else None,
            prompts=tuple(self._prompt_logprobs(targets, hidden) for targets in plan.prompts),
        )

    def sample(self, rows: Sequence[Row], plan: BatchPlan, output: ForwardOutput) -> Pending:
        outputs = self._sample(rows, output)
        return lambda: outputs

    def follow(self, plan: BatchPlan) -> None:
        self.forward(plan)

    def logits(self, row: Row) -> Tensor:
        return self._model.logits(self._hidden(self.plan([row])))

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)

    def check(self) -> None:
        """CPUs are never lost."""

    def _hidden(self, plan: BatchPlan) -> Tensor:
        text = GroupedKVCache(self._memory.text, plan, self._frequencies, self._model.config.num_heads)
        images = GroupedCrossCache(self._memory.images, plan.cross) if plan.cross else None
        hidden: Tensor = self._model(plan.tokens, text, images)
        return hidden

    def _prompt_logprobs(self, targets: PromptTargets, hidden: Tensor) -> TopLogprobs:
        """Logprobs of prompt tokens, a few at once: logits are large."""
        states = hidden[targets.begin : targets.begin + len(targets.tokens)]
        pieces = zip(
            torch.split(states, _PROMPT_LOGITS_ROWS), torch.split(targets.tokens, _PROMPT_LOGITS_ROWS), strict=True
        )
        found = [top_logprobs(self._model.logits(some), tokens, targets.top) for some, tokens in pieces]
        return TopLogprobs(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _sample(self, rows: Sequence[Row], output: ForwardOutput) -> list[RowOutput]:
        prompts = (found.to_messages() for found in output.prompts)
        if output.logits is None:
            return row_outputs(rows, (), {}, iter(()), prompts)
        sampled, raw = [row for row in rows if row.choices], output.logits
        finite = raw.sum(dim=-1).isfinite().tolist()
        raw = raw if all(finite) else raw.nan_to_num()
        draws = draws_of(sampled)
        edits = LogitEdits.of(sampled, raw.shape[1])
        tokens = [
            token if finite[draw.row] else NOT_FINITE
            for draw, token in zip(draws, sample(edited_logits(raw, edits), draws), strict=True)
        ]
        return row_outputs(rows, tokens, edits.failed, _logprobs(sampled, raw, tokens), prompts)


def edited_logits(logits: Tensor, edits: LogitEdits) -> Tensor:
    """Logits [rows, vocabulary] as rows ask for them; the same tensor where none asks for anything."""
    if edits.is_empty:
        return logits
    logits = logits.clone()
    apply_changes(logits, *map(torch.from_numpy, (edits.rows, edits.tokens, edits.factors, edits.shifts)))
    if len(edits.masked):
        apply_masks(logits, torch.from_numpy(edits.masked), torch.from_numpy(edits.allowed))
    return logits


def _logprobs(rows: Sequence[Row], logits: Tensor, tokens: Sequence[int]) -> Iterator[Logprobs]:
    """Of each draw of the rows that ask for them, by the logits of these rows."""
    drawn = iter(tokens)
    for i, row in enumerate(rows):
        chosen = [max(next(drawn), 0) for _ in row.choices]
        if (top := row.request.top_logprobs) is not None:
            yield from top_logprobs(logits[i].expand(len(chosen), -1), torch.tensor(chosen), top).to_messages()
