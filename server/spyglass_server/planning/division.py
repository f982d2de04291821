"""How a model's sizes are divided among ranks: the one rule that the planner and the model itself follow."""

import math

SPARE_EMBEDDINGS = 8
"""Tokens that have an embedding and no logit."""


def per_rank(count: int, num_ranks: int) -> int:
    """How many of so many parts each rank has at most."""
    return math.ceil(count / num_ranks)


def heads_of_rank(heads: int, kv_heads: int, num_ranks: int) -> tuple[int, int]:
    """The heads of one rank, and its key-value heads.

    Heads that share a key head stay together; where there are more ranks than key heads, several have the same.

    Raises:
        ValueError: the heads cannot be divided so.
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
    """How many of the model's heads a rank has: `heads_of_rank`, but for those that are padding."""
    at_most, _ = heads_of_rank(heads, kv_heads, num_ranks)
    return max(0, min(at_most, heads - rank * at_most))
