"""Edits of the rows' logits before sampling: penalties, biases, banned tokens and grammar masks.

A row's edits depend on that row alone. They are computed on the host, as numbers, and applied wherever the logits are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.structured_output import GrammarFailed, Matcher
from spyglass_server.engine.worker.batch import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """Changes to single logits, of row `rows` and token `tokens` [changes]: positive logits are divided by `factors`,
    negative ones multiplied, then `shifts` are subtracted. `allowed` [masks, words] has a bit for each token that rows
    `masked` [masks] may still choose, lowest first.

    `failed` maps rows that cannot continue to the reason: their grammars allow no next token.
    """

    rows: NDArray[np.int32]
    tokens: NDArray[np.int32]
    factors: NDArray[np.float32]
    shifts: NDArray[np.float32]
    masked: NDArray[np.int32]
    allowed: NDArray[np.int32]
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not len(self.rows) and not len(self.masked)

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int) -> "LogitEdits":
        """Returns the edits of rows whose logits are sampled."""
        changes = {i: found for i, row in enumerate(rows) if (found := _changes(row, vocab_size)) is not None}
        masks, failed = {}, {}
        for i, row in enumerate(rows):
            if row.matcher is None:
                continue
            try:
                masks[i] = _allowed(row.matcher, vocab_size)
            except GrammarFailed as error:  # other rows are not affected
                failed[i] = f"the grammar cannot be followed: {error}"
        tokens, factors, shifts = (
            np.concatenate([np.empty(0), *(found[part] for found in changes.values())]) for part in range(3)
        )
        return cls(
            rows=np.repeat(np.array(list(changes), np.int32), [len(found[0]) for found in changes.values()]),
            tokens=tokens.astype(np.int32),
            factors=factors.astype(np.float32),
            shifts=shifts.astype(np.float32),
            masked=np.array(list(masks), np.int32),
            allowed=np.stack(list(masks.values())) if masks else np.empty((0, 0), np.int32),
            failed=failed,
        )


def apply_changes(logits: Tensor, rows: Tensor, tokens: Tensor, factors: Tensor, shifts: Tensor) -> None:
    """Changes single logits of [rows, vocabulary] in place."""
    flat = logits.view(-1)
    at = rows.long() * logits.shape[1] + tokens
    found = flat.index_select(0, at)
    flat.index_copy_(0, at, torch.where(found > 0, found / factors, found * factors) - shifts)


def apply_masks(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    """Masks all tokens but the allowed ones, int32 [masks, words], in rows of logits [rows, vocabulary]."""
    rows = rows.long()
    bits = (allowed[:, :, None] >> torch.arange(32, dtype=torch.int32, device=allowed.device)) & 1
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(forbidden, -torch.inf))


def _changes(row: Row, vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns tokens, factors and shifts of a row, each token once; None if it has none."""
    sampling, banned = row.request.sampling, frozenset() if row.may_stop else row.request.stop_token_ids
    if not (banned or sampling.has_penalties or sampling.logit_bias):
        return None
    repeated = answered = counts = np.empty(0, np.int64)
    if sampling.repetition_penalty != 1:
        repeated, _ = _counted(row.history, vocab_size)
    if sampling.frequency_penalty or sampling.presence_penalty:
        answered, counts = _counted(row.history[len(row.request.tokens) :], vocab_size)
    biased, biases = zip(*sampling.logit_bias, strict=True) if sampling.logit_bias else ((), ())
    groups = [repeated, answered, np.array(biased, np.int64), np.array(list(banned), np.int64)]
    tokens, where = np.unique(np.concatenate(groups), return_inverse=True)
    own_repeated, own_answered, own_biased, own_banned = np.split(
        where, np.cumsum([len(group) for group in groups])[:-1]
    )
    factors, shifts = np.ones(len(tokens)), np.zeros(len(tokens))
    factors[own_repeated] = sampling.repetition_penalty
    shifts[own_answered] += sampling.presence_penalty + sampling.frequency_penalty * counts
    shifts[own_biased] -= biases
    shifts[own_banned] = np.inf
    return tokens, factors, shifts


def _counted(tokens: Sequence[int], vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the distinct tokens and how often each occurs, without the image token, which has no logits."""
    counts = np.bincount(np.asarray(tokens, np.int64))[:vocab_size]
    there = counts.nonzero()[0]
    return there, counts[there]


def _allowed(matcher: Matcher, vocab_size: int) -> NDArray[np.int32]:
    """Returns a bit for each token, set if the grammar allows it; the grammar may know more or fewer tokens."""
    try:
        known = np.frombuffer(matcher.allowed(), np.uint8)
    except Exception as error:  # from the grammar library
        raise GrammarFailed(repr(error)) from error
    size, rest = divmod(vocab_size, 8)
    mask = np.zeros(4 * -(-vocab_size // 32), np.uint8)
    known = known[: size + (rest > 0)]
    mask[: len(known)] = known
    if rest:
        mask[size] &= (1 << rest) - 1
    if not mask.any():
        raise GrammarFailed("no token may follow")
    return mask.view(np.int32)
