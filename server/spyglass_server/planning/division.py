"""How a model's sizes are divided among ranks: the rule that both the planner and the model follow."""

import math

SPARE_EMBEDDINGS = 8
"""Tokens that have an embedding but no logit."""


def per_rank(count: int, num_ranks: int) -> int:
    """Returns the maximum number of parts per rank, of `count` parts."""
    return math.ceil(count / num_ranks)


def heads_of_rank(heads: int, kv_heads: int, num_ranks: int) -> tuple[int, int]:
    """Returns the heads of one rank, and its key-value heads.

    Heads that share a key head stay together; with more ranks than key heads, several ranks have the same key head.

    Raises:
        ValueError: the heads cannot be divided among the ranks.
    """
    if num_ranks <= kv_heads:
        own = per_rank(kv_heads, num_ranks)
        return own * (heads // kv_heads), own
    if num_ranks % kv_heads or heads % num_ranks:
        raise ValueError(
            f"{heads} heads with {kv_heads} key-value heads cannot be divided among {num_ranks} ranks; "
            f"more ranks than key-value heads must be a multiple of these and divide the heads"
        )
    return heads // num_ranks, 1


def heads_here(heads: int, kv_heads: int, rank: int, num_ranks: int) -> int:
    """Returns how many of the model's heads a rank has: `heads_of_rank` without padding."""
    at_most, _ = heads_of_rank(heads, kv_heads, num_ranks)
    return max(0, min(at_most, heads - rank * at_most))
