"""Chooses tokens: filters by thresholds, without sorting, then keyed Gumbel noise. The CPU path is in sampler.py."""

import triton
import triton.language as tl
from torch import Tensor

from spyglass_server.runtime.kernels.launch import launch

_BLOCK = 4096


@triton.jit
def _key(value):
    """Maps float32 numbers to integers in the same order; zero has one, regardless of its sign."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _weight(value, best, inverse_temperature):
    """A token's weight relative to the best one, whose weight is 1."""
    return tl.exp2((value - best) * inverse_temperature)


@triton.jit
def _count_and_mass(logits, best, inverse_temperature, key, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """How many logits have this key or a greater one, and their total weight."""
    count = tl.full((), 0, tl.int32)
    mass = tl.full((), 0.0, tl.float64)
    for first in range(0, SIZE, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(logits + at, mask=at < SIZE, other=-float("inf"))
        is_in = (_key(value) >= key) & (at < SIZE)
        count += tl.sum(is_in.to(tl.int32), 0)
        mass += tl.sum(tl.where(is_in, _weight(value, best, inverse_temperature), 0.0), 0).to(tl.float64)
    return count, mass


@triton.jit
def _threshold(
    logits, best, inverse_temperature, lowest, needed_count, needed_mass, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """The greatest key that keeps enough logits, by number and by mass; `lowest` must keep enough."""
    low, high = lowest.to(tl.int64), _key(best).to(tl.int64)
    while low < high:
        middle = low + (high - low + 1) // 2
        count, mass = _count_and_mass(logits, best, inverse_temperature, middle, SIZE, BLOCK)
        is_enough = (count >= needed_count) & (mass >= needed_mass)
        low = tl.where(is_enough, middle, low)
        high = tl.where(is_enough, high, middle - 1)
    return low


@triton.jit
def _best(logits, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest logit, its first index, and whether all logits are numbers."""
    best = tl.full((), -float("inf"), tl.float32)
    where = tl.full((), 0, tl.int32)
    is_finite = tl.full((), 1, tl.int32)
    for first in range(0, SIZE, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(logits + at, mask=at < SIZE, other=-float("inf"))
        is_bad = (value != value) | (value == float("inf"))
        is_finite = tl.where(tl.max(is_bad.to(tl.int32), 0) > 0, 0, is_finite)
        largest = tl.max(value, 0)
        if largest > best:
            where = tl.min(tl.where(value == largest, at, SIZE), 0)
            best = largest
    return best, where, is_finite & (best > -float("inf")).to(tl.int32)


@triton.jit
def _shifted(bits, COUNT: tl.constexpr):
    """Shifts 64 bits right, filling with zeros."""
    return (bits >> COUNT) & ((1 << (64 - COUNT)) - 1)


@triton.jit
def _gumbel(start, token):
    """Standard Gumbel noise in float64, one number per token, by SplitMix64 (its constants are signed here)."""
    state = start + (token.to(tl.int64) + 1) * -7046029254386353131
    state = (state ^ _shifted(state, 30)) * -4658895280553007687
    state = (state ^ _shifted(state, 27)) * -7723592293110705685
    state = state ^ _shifted(state, 31)
    uniform = (_shifted(state, 12).to(tl.float64) + 0.5) * 2.220446049250313e-16
    return -tl.log(-tl.log(uniform))


@triton.jit
def _filters(logits, best, inverse_temperature, top_k, top_p, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """What `top_k` and then `top_p` leave: all logits above a key, and the first `ties` logits at it."""
    key = tl.full((), -2147483648, tl.int64)  # the least possible
    ties = tl.full((), SIZE, tl.int64)
    if top_k > 0 and top_k < SIZE:
        key = _threshold(logits, best, inverse_temperature, key, top_k, 0.0, SIZE, BLOCK)
        above, _ = _count_and_mass(logits, best, inverse_temperature, key + 1, SIZE, BLOCK)
        ties = (top_k - above).to(tl.int64)
    if top_p < 1:
        count, mass = _count_and_mass(logits, best, inverse_temperature, key, SIZE, BLOCK)
        above, above_mass = _count_and_mass(logits, best, inverse_temperature, key + 1, SIZE, BLOCK)
        at_key = (mass - above_mass) / tl.maximum(count - above, 1).to(tl.float64)
        needed = top_p * (above_mass + at_key * tl.minimum(ties, count - above).to(tl.float64))
        lowest = key
        key = _threshold(logits, best, inverse_temperature, lowest, 0, needed, SIZE, BLOCK)
        count, mass = _count_and_mass(logits, best, inverse_temperature, key, SIZE, BLOCK)
        above, above_mass = _count_and_mass(logits, best, inverse_temperature, key + 1, SIZE, BLOCK)
        at_key = (mass - above_mass) / tl.maximum(count - above, 1).to(tl.float64)
        wanted = tl.maximum(tl.ceil((needed - above_mass) / at_key).to(tl.int64), 1)
        ties = tl.where(key == lowest, tl.minimum(ties, wanted), wanted)
    return key, ties


@triton.jit
def _sample(logits, rows, params, top_ks, starts, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One draw; -1 if the logits are not finite."""
    draw = tl.program_id(0)
    logits += tl.load(rows + draw).to(tl.int64) * SIZE
    temperature, top_p = tl.load(params + 3 * draw), tl.load(params + 3 * draw + 1)
    best, chosen, is_finite = _best(logits, SIZE, BLOCK)
    if (temperature > 0) & (is_finite > 0):
        temperature = tl.maximum(temperature, 1e-30)  # smaller ones change nothing, and this fits a float32
        inverse_temperature = (1.4426950408889634 / temperature).to(tl.float32)
        key, ties = _filters(logits, best, inverse_temperature, tl.load(top_ks + draw), top_p, SIZE, BLOCK)
        min_p, start = tl.load(params + 3 * draw + 2), tl.load(starts + draw)
        largest = tl.full((), -float("inf"), tl.float64)
        num_ties = tl.full((), 0, tl.int64)
        for first in range(0, SIZE, BLOCK):
            at = first + tl.arange(0, BLOCK)
            value = tl.load(logits + at, mask=at < SIZE, other=-float("inf"))
            keys = _key(value).to(tl.int64)
            is_tie = (keys == key) & (at < SIZE)
            rank = num_ties + tl.cumsum(is_tie.to(tl.int32), 0)
            scaled = (value - best).to(tl.float64) / temperature
            keep = (keys > key) | (is_tie & (rank <= ties))
            keep = keep & (tl.exp(scaled) >= min_p)
            sums = tl.where(keep, scaled + _gumbel(start, at), -float("inf"))
            top = tl.max(sums, 0)
            if top > largest:
                chosen = tl.min(tl.where(sums == top, at, SIZE), 0)
                largest = top
            num_ties += tl.sum(is_tie.to(tl.int32), 0)
    tl.store(out + draw, tl.where(is_finite > 0, chosen, -1))


def sample_tokens(logits: Tensor, rows: Tensor, params: Tensor, top_ks: Tensor, starts: Tensor, out: Tensor) -> None:
    """Chooses one token for each draw: out int32 [draws], -1 if a row's logits are not finite.

    logits float32 [rows, vocabulary]; `rows` int32 [draws], the row of each; params float64 [draws, 3]: temperature
    (0 takes the best), top_p, min_p; top_ks int32 [draws], 0 for all; starts int64 [draws], where each draw's random
    numbers begin.
    """
    size = logits.shape[1]
    block = min(_BLOCK, triton.next_power_of_2(size))
    launch(
        _sample, (len(rows),), logits, rows, params, top_ks, starts, out,
        SIZE=size, BLOCK=block, num_warps=8,
    )  # fmt: skip
