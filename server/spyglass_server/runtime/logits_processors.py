"""Logits processors: penalties, biases, banned tokens and grammar masks, applied before sampling.

What is done to a row's logits depends on that row alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.messages import SamplingParams
from spyglass_server.engine.structured_output import GrammarFailed, Matcher
from spyglass_server.engine.worker.batch import Row


def process_logits(logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, dict[int, str]]:
    """Logits [rows, vocabulary] as rows ask for them; the same tensor where none asks for anything.

    Also returns which rows cannot go on, and why: their grammars allow no next token.
    """
    failed: dict[int, str] = {}
    changed = [i for i, row in enumerate(rows) if _needs_processing(row)]
    if changed:
        logits = logits.clone()
    for i in changed:
        try:
            _process(logits[i], rows[i])
        except GrammarFailed as error:  # no other row has a part in it
            failed[i] = f"the grammar cannot be followed: {error}"
    return logits, failed


def _needs_processing(row: Row) -> bool:
    sampling = row.request.sampling
    return bool(_banned(row) or row.matcher or sampling.has_penalties or sampling.logit_bias)


def _banned(row: Row) -> frozenset[int]:
    """Tokens that must not come next."""
    return frozenset() if row.may_stop else row.request.stop_token_ids


def _process(logits: Tensor, row: Row) -> None:
    """Changes the logits [vocabulary] of one row where they are. Later steps see what earlier ones have made."""
    sampling = row.request.sampling
    if sampling.repetition_penalty != 1:
        _apply_repetition_penalty(logits, row.history, sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        _apply_frequency_penalties(logits, row.history[len(row.request.tokens) :], sampling)
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        logits[_index(np.array(tokens), logits)] += torch.tensor(biases, device=logits.device)
    if banned := _banned(row):
        logits[_index(np.array(list(banned)), logits)] = -torch.inf
    if row.matcher is not None:
        logits[_forbidden(row.matcher, len(logits)).to(logits.device)] = -torch.inf


def _forbidden(matcher: Matcher, vocab_size: int) -> Tensor:
    """Which tokens [vocabulary] a grammar does not allow; it may know more than there are logits, or fewer."""
    try:
        allowed = matcher.allowed()
    except Exception as error:  # of the grammar's library
        raise GrammarFailed(repr(error)) from error
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")[:vocab_size]
    forbidden = np.ones(vocab_size, np.bool_)
    forbidden[: len(bits)] = bits == 0
    if forbidden.all():
        raise GrammarFailed("no token may follow")
    return torch.from_numpy(forbidden)


def _apply_repetition_penalty(logits: Tensor, tokens: Sequence[int], penalty: float) -> None:
    there = _index(_counted(tokens, logits)[0], logits)
    found = logits[there]
    logits[there] = torch.where(found > 0, found / penalty, found * penalty)


def _apply_frequency_penalties(logits: Tensor, answer: Sequence[int], sampling: SamplingParams) -> None:
    tokens, counts = _counted(answer, logits)
    lower = sampling.presence_penalty + sampling.frequency_penalty * counts
    logits[_index(tokens, logits)] -= torch.from_numpy(lower).to(logits)


def _counted(tokens: Sequence[int], logits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which tokens are among some, and how often each; the image token, which has no logits, is left out."""
    counts = np.bincount(np.asarray(tokens, np.int64))[: len(logits)]
    there = counts.nonzero()[0]
    return there, counts[there]


def _index(tokens: NDArray[np.int64], logits: Tensor) -> Tensor:
    return torch.from_numpy(tokens).to(logits.device)
