"""Samples tokens from logits: temperature, filters, random numbers, and logprobs.

A random number depends only on seed, choice, position and token, so an answer does not change with the rest of the
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.messages import Logprobs, SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""What SplitMix64 adds to its state for each number: 2^64 divided by the golden ratio, as an int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One token to choose from row `row` of the logits, for a choice at a position of its sequence."""

    row: int
    params: SamplingParams
    choice: int
    position: int


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Chooses one token id for each draw. logits: float32 [rows, vocabulary], finite."""
    tokens = logits.argmax(dim=-1)[[draw.row for draw in draws]].tolist()
    random = [i for i, draw in enumerate(draws) if not draw.params.greedy]
    if random:
        chosen = _sample_random(logits, [draws[i] for i in random])
        for i, token in zip(random, chosen, strict=True):
            tokens[i] = token
    return [int(token) for token in tokens]


def sample_finite(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """As `sample`, but logits may be non-finite: -1 for draws from their rows. Masked logits are minus infinity."""
    finite = logits.amax(dim=-1).isfinite().tolist()
    tokens = sample(logits if all(finite) else logits.nan_to_num(), draws)
    return [token if finite[draw.row] else -1 for draw, token in zip(draws, tokens, strict=True)]


class TopLogprobs(NamedTuple):
    """Logprobs of tokens [tokens], and the most probable tokens [tokens, top] with their logprobs, best first."""

    chosen: Tensor
    top_tokens: Tensor
    top: Tensor

    def to_messages(self) -> tuple[Logprobs, ...]:
        """Returns the same, token by token, on the host."""
        tops = zip(self.top_tokens.tolist(), self.top.tolist(), strict=True)
        return tuple(
            Logprobs(one, tuple(ids), tuple(top)) for one, (ids, top) in zip(self.chosen.tolist(), tops, strict=True)
        )


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> TopLogprobs:
    """Returns logprobs of `tokens`, one per row, and of the `count` most probable, from logits [rows, vocabulary]."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(count)
    return TopLogprobs(logprobs.gather(1, tokens[:, None])[:, 0], best.indices, best.values)


def _sample_random(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Adds Gumbel noise to the scaled logits of the tokens that the filters leave, and takes the largest sum.

    Each token has its own random number, so rounding that differs with the batch decides only if two sums are that
    close; going through tokens by probability would let it decide whenever two of them are equally probable.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    picked = logits[[draw.row for draw in draws]].double()
    below_best = picked - picked.amax(dim=-1, keepdim=True)  # stays finite at any temperature
    scaled = below_best / column([draw.params.temperature for draw in draws])
    keep = scaled.exp() >= column([draw.params.min_p for draw in draws])
    if any(draw.params.top_k or draw.params.top_p < 1 for draw in draws):
        keep &= _best(
            scaled,
            column([draw.params.top_k or scaled.shape[1] for draw in draws]),
            column([draw.params.top_p for draw in draws]),
        )
    sums = torch.where(keep, scaled + _gumbel(draws, logits), -torch.inf)
    chosen: list[int] = sums.argmax(dim=-1).tolist()
    return chosen


def _best(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens [draws, vocabulary] remain after `top_k` and then `top_p`."""
    ordered, order = scaled.sort(descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)[None]
    probs = torch.where(rank < top_k, ordered.softmax(dim=-1), 0.0)
    before = probs.cumsum(dim=-1) - probs
    reaches = before < top_p * probs.sum(dim=-1, keepdim=True)
    keep = (rank < top_k) & (reaches | (top_p >= 1))  # rounding must not drop what a row alone would keep
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter_(1, order, keep)


def _gumbel(draws: Sequence[Draw], logits: Tensor) -> Tensor:
    """Standard Gumbel noise [draws, vocabulary] in float64."""
    first = torch.from_numpy(random_starts(draws)).to(logits.device)
    token = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    bits = _shifted(_split_mix(first[:, None] + token[None] * _GOLDEN), 12)  # the added half takes the last of 53
    return bits.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


def random_starts(draws: Sequence[Draw]) -> NDArray[np.int64]:
    """Returns where each draw's random numbers begin [draws]: 64 bits from a counter-based generator (Philox)."""
    generators = (np.random.Philox(key=draw.params.seed, counter=[0, 0, draw.choice, draw.position]) for draw in draws)
    return np.array([int(generator.random_raw()) - 2**63 for generator in generators], np.int64)


def _split_mix(state: Tensor) -> Tensor:
    """Returns the numbers of SplitMix64 (Steele, Lea and Flood, 2014) in int64 states; products wrap around."""
    state = (state ^ _shifted(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shifted(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shifts 64 bits right, filling with zeros."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
