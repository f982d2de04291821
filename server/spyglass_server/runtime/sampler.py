"""Chooses tokens from logits.

Owns temperature, the filters and the random numbers, and the probabilities that are told. A random number depends on
nothing but seed, choice and position, so that an answer does not change with what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spyglass_server.engine.types import Logprobs, SamplingParams


@dataclass(frozen=True, slots=True)
class Draw:
    """One token to choose from row `row` of the logits, for a choice at a position of its sequence."""

    row: int
    params: SamplingParams
    choice: int
    position: int


def uniform(seed: int, choice: int, position: int) -> float:
    """A random number in [0, 1) from a counter-based generator (Philox)."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, choice, position]))
    return generator.random()


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Chooses one token id for each draw. logits: float32 [rows, vocabulary], finite."""
    tokens = logits.argmax(dim=-1)[[draw.row for draw in draws]].tolist()
    random = [i for i, draw in enumerate(draws) if not draw.params.greedy]
    if random:
        chosen = _sample_random(logits, [draws[i] for i in random])
        for i, token in zip(random, chosen, strict=True):
            tokens[i] = token
    return [int(token) for token in tokens]


def logprobs_of(logits: Tensor, tokens: Sequence[int], count: int) -> list[Logprobs]:
    """Probabilities of one token of each row, and of `count` of the row's most probable ones, by logits
    [rows, vocabulary]."""
    told = logits.float().log_softmax(dim=-1)
    chosen = told.gather(1, torch.tensor(tokens, device=told.device)[:, None])[:, 0].tolist()
    best = told.topk(count)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Logprobs(one, tuple(ids), tuple(top)) for one, (ids, top) in zip(chosen, tops, strict=True)]


def _sample_random(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Inverts the distribution function of the tokens that the filters leave, most probable first."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    picked = logits[[draw.row for draw in draws]].double()
    below_best = picked - picked.amax(dim=-1, keepdim=True)  # stays finite at any temperature
    scaled, order = (below_best / column([d.params.temperature for d in draws])).sort(descending=True, stable=True)
    probs = scaled.softmax(dim=-1)
    rank = torch.arange(probs.shape[1], device=logits.device)[None]
    top_k = column([d.params.top_k or probs.shape[1] for d in draws])
    probs = torch.where(rank < top_k, probs, 0.0)
    before = probs.cumsum(dim=-1) - probs
    keep = before < column([d.params.top_p for d in draws]) * probs.sum(dim=-1, keepdim=True)
    keep &= probs >= column([d.params.min_p for d in draws]) * probs[:, :1]
    keep[:, 0] = True
    probs = torch.where(keep, probs, 0.0)
    cumulative = probs.cumsum(dim=-1)
    target = column([uniform(d.params.seed, d.choice, d.position) for d in draws]) * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=-1, keepdim=True)
    last_kept = keep.long().sum(dim=-1, keepdim=True) - 1  # rounding must not lead past the kept ones
    chosen: list[int] = order.gather(1, torch.minimum(index, last_kept)).squeeze(1).tolist()
    return chosen
