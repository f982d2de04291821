"""What rows ask to be done to their logits before sampling: penalties, biases, banned tokens and grammar masks.

What is done to a row's logits depends on that row alone. It is decided on the host, as numbers, and applied wherever
the logits are.
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
    """Changes of single logits, each of row `rows` and token `tokens` [changes]: positive ones are divided by
    `factors`, negative ones multiplied, then `shifts` are subtracted. And `allowed` [masks, words] has a bit for each
    token that rows `masked` [masks] may still have, the lowest first.

    `failed` are the rows that cannot go on, and why: their grammars allow no next token.
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
        """Of rows whose logits are sampled."""
        changes = {i: found for i, row in enumerate(rows) if (found := _changes(row, vocab_size)) is not None}
        masks, failed = {}, {}
        for i, row in enumerate(rows):
            if row.matcher is None:
                continue
            try:
                masks[i] = _allowed(row.matcher, vocab_size)
            except GrammarFailed as error:  # no other row has a part in it
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
    """Changes single logits of [rows, vocabulary] where they are."""
    flat = logits.view(-1)
    at = rows.long() * logits.shape[1] + tokens
    found = flat.index_select(0, at)
    flat.index_copy_(0, at, torch.where(found > 0, found / factors, found * factors) - shifts)


def apply_masks(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    """Leaves rows of logits [rows, vocabulary] only what is allowed, int32 [masks, words]."""
    rows = rows.long()
    bits = (allowed[:, :, None] >> torch.arange(32, dtype=torch.int32, device=allowed.device)) & 1
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(forbidden, -torch.inf))


def _changes(row: Row, vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Tokens, factors and shifts of a row; each token once."""
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
    """Which tokens are among some, and how often each; the image token, which has no logits, is left out."""
    counts = np.bincount(np.asarray(tokens, np.int64))[:vocab_size]
    there = counts.nonzero()[0]
    return there, counts[there]


def _allowed(matcher: Matcher, vocab_size: int) -> NDArray[np.int32]:
    """Which tokens a grammar allows, a bit each; it may know more than there are logits, or fewer."""
    try:
        known = np.frombuffer(matcher.allowed(), np.uint8)
    except Exception as error:  # of the grammar's library
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
