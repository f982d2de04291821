"""The kernels for GPUs equal the CPU path.

They run in Triton's interpreter, which has no bfloat16 of its own: numbers of that format are computed in float32 here,
and rounded once.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sampling_cases import (
    SOME_DTYPES,
    SOME_PARAMS,
    assert_alike,
    assert_filters_keep_the_first_of_equals,
    assert_tells_rows_that_are_not_finite,
)
from simulated_gpu import simulated_gpu
from spyglass_server.engine.messages import SamplingParams
from spyglass_server.runtime.kernels import attention, launch, sampling
from spyglass_server.runtime.kernels.attention import QUERY_BLOCK, decode_attention, prefill_attention
from spyglass_server.runtime.kernels.layers import add_rms_norm, resolve_tokens, rotate_and_store, silu_mul, to_fp8
from spyglass_server.runtime.kernels.products import fp8_weight_product
from spyglass_server.runtime.kernels.sampling import sample_tokens
from spyglass_server.runtime.model.layers import RMSNorm, grouped_attention, rotary_angles, rotate
from spyglass_server.runtime.ops import TorchOps
from spyglass_server.runtime.sampler import Draw, random_starts, sample

pytestmark = pytest.mark.usefixtures("small_grids")
TYPES = [torch.float32, torch.float16, torch.bfloat16]
BLOCK, NUM_BLOCKS = 16, 200
SIZES = [(4, 2, 32), (5, 1, 24)]
"""Query heads, key heads, and the dimensions of each: also such as are no powers of two."""


@pytest.fixture(scope="module")
def small_grids() -> Iterator[None]:
    """The interpreter runs one program after the other: a few share the work, and logits are of several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_PROGRAMS", 24)
        patch.setattr(sampling, "_BLOCK", 64)
        yield


def given_to_kernels(x: Tensor) -> Tensor:
    """What the interpreter can compute with."""
    return x.float() if x.dtype is torch.bfloat16 else x


def assert_equal(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """In float32 within 1e-5, in half precision within one unit in the last place of numbers of ordinary size."""
    if dtype is torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(found.to(dtype).float(), expected.float(), rtol=unit, atol=unit / 2)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass
class Cache:
    """Keys and values in scattered blocks. Slots that nobody may read hold no numbers."""

    k: Tensor
    v: Tensor
    tables: Tensor

    @classmethod
    def of(cls, kv_heads: int, head_dim: int, lengths: Sequence[int], dtype: torch.dtype) -> "Cache":
        """One sequence in each row of the tables, of these lengths."""
        k, v = (torch.full((NUM_BLOCKS * BLOCK, kv_heads * head_dim), torch.nan, dtype=dtype) for _ in range(2))
        order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).to(torch.int32)
        width = max(-(-length // BLOCK) for length in lengths) + 1
        cache = cls(k, v, order[: len(lengths) * width].view(len(lengths), width).clone())
        for seat, length in enumerate(lengths):
            k[cache.slots(seat, 0, length)] = random(length, kv_heads * head_dim, dtype=dtype, seed=2 * seat)
            v[cache.slots(seat, 0, length)] = random(length, kv_heads * head_dim, dtype=dtype, seed=2 * seat + 1)
        return cache

    def slots(self, seat: int, begin: int, end: int) -> Tensor:
        at = torch.arange(begin, end)
        return self.tables[seat].long()[at // BLOCK] * BLOCK + at % BLOCK

    def attention(self, q: Tensor, seat: int, begin: int, end: int) -> Tensor:
        """What one token's q [heads, head_dim] finds at some positions, by the CPU path in float32."""
        slots = self.slots(seat, begin, end)
        k, v = (x[slots].float().view(1, len(slots), -1, q.shape[1]).transpose(1, 2) for x in (self.k, self.v))
        return grouped_attention(q[None, None].float(), k, v)[0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_decode_attention(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim = sizes
    reads = torch.tensor([[0, 1, 2, 3, 1, 0], [0, 0, 0, 5, 7, 0], [1, 300, 256, 259, 7, 0]], dtype=torch.int32)
    cache = Cache.of(kv_heads, head_dim, [1, 300, 256, 259], dtype)
    q = random(6, heads, head_dim, dtype=dtype, seed=9)
    k, v = given_to_kernels(cache.k), given_to_kernels(cache.v)
    found = decode_attention(given_to_kernels(q), k, v, cache.tables, reads, BLOCK)
    for row, (seat, begin, end) in enumerate(reads.T.tolist()):
        if begin == end:
            assert not found[row].any()  # it sees nothing
            continue
        assert_equal(found[row], cache.attention(q[row], seat, begin, end), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
def test_prefill_attention(sizes: tuple[int, int, int], dtype: torch.dtype, is_causal: bool) -> None:
    heads, kv_heads, head_dim = sizes
    cache = Cache.of(kv_heads, head_dim, [70, 120, 5], dtype)
    blocks = [(2, 3, 2, 0, 3), (5, QUERY_BLOCK, 0, 0, 1), (69, 6, 0, 0, 65), (75, 10, 1, 0, 111), (85, 1, 1, 40, 90)]
    q = random(86, heads, head_dim, dtype=dtype, seed=9)
    out = torch.full((86, heads * head_dim), -7.0, dtype=given_to_kernels(q).dtype)
    k, v = given_to_kernels(cache.k), given_to_kernels(cache.v)
    table = torch.tensor(blocks, dtype=torch.int32).T.contiguous()
    prefill_attention(given_to_kernels(q), k, v, cache.tables, table, out, BLOCK, is_causal=is_causal)
    assert (out[:2] == -7.0).all()  # tokens of no block
    for first, count, seat, begin, end in blocks:
        for token in range(count):
            seen = end + token if is_causal else end
            assert_equal(out[first + token], cache.attention(q[first + token], seat, begin, seen), dtype)


def test_attention_of_a_row_does_not_depend_on_the_others() -> None:
    cache = Cache.of(2, 32, [700, 300, 900], torch.float32)
    q = random(3, 4, 32)
    reads = torch.tensor([[0, 1, 2], [0, 0, 0], [700, 300, 900]], dtype=torch.int32)
    together = decode_attention(q, cache.k, cache.v, cache.tables, reads, BLOCK)
    many = decode_attention(q.repeat(4, 1, 1), cache.k, cache.v, cache.tables, reads.repeat(1, 4), BLOCK)
    for row in range(3):
        alone = decode_attention(
            q[row : row + 1], cache.k, cache.v, cache.tables, reads[:, row : row + 1].contiguous(), BLOCK
        )
        assert torch.equal(alone[0], together[row])
        assert torch.equal(alone[0], many[row])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [32, 100, 1025])
def test_add_rms_norm(dtype: torch.dtype, size: int) -> None:
    norm = RMSNorm(size, eps=1e-5)
    norm.weight.data = random(size, dtype=dtype, seed=1) / 4 + 1
    x, added, gate = random(3, size), random(3, size, dtype=dtype, seed=2), torch.tensor([0.3])
    weight = given_to_kernels(norm.weight.detach())
    for given_added, given_gate in ((None, None), (added, None), (added, gate)):
        total, expected = norm.add(x, given_added, given_gate)
        ours = x.clone()
        more = None if given_added is None else given_to_kernels(given_added)
        found = add_rms_norm(ours, more, given_gate, weight, 1e-5)
        assert_equal(ours, total, torch.float32)
        assert_equal(found, expected, dtype)
    heads = x.to(dtype)  # not of the residual stream
    assert_equal(add_rms_norm(given_to_kernels(heads), None, None, weight, 1e-5), norm(heads), dtype)


def test_norm_of_every_other_row() -> None:
    """As keys lie beside values, where there is one key head."""
    norm = RMSNorm(40, eps=1e-5)
    norm.weight.data = random(40, seed=1)
    keys = random(7, 2, 40)[:, :1].transpose(0, 1)
    expected = norm(keys)
    with simulated_gpu():
        assert_equal(norm(keys), expected, torch.float32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rotate_and_store(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim = sizes
    qkv = random(3, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    positions, slots = torch.tensor([0, 17, 32_767], dtype=torch.int32), torch.tensor([5, 0, 3], dtype=torch.int32)
    frequencies = 1 / 500_000 ** (torch.arange(0, head_dim, 2) / head_dim)
    split = qkv.view(3, -1, head_dim)
    expected = rotate(split[:, : heads + kv_heads], *rotary_angles(positions, frequencies))
    k, v = (torch.full((8, kv_heads * head_dim), torch.nan, dtype=given_to_kernels(qkv).dtype) for _ in range(2))
    q = rotate_and_store(given_to_kernels(qkv), positions, frequencies, slots, k, v, heads)
    assert_equal(q, expected[:, :heads], dtype)
    assert_equal(k[slots.long()], expected[:, heads:].flatten(1), dtype)
    assert_equal(v[slots.long()], split[:, heads + kv_heads :].flatten(1), dtype)
    assert k.isnan().any(1).tolist() == v.isnan().any(1).tolist() == [i not in (5, 0, 3) for i in range(8)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [80, 1500])
def test_silu_mul(dtype: torch.dtype, size: int) -> None:
    gate_up = random(3, 2 * size, dtype=dtype) * 3
    assert_equal(silu_mul(given_to_kernels(gate_up)), TorchOps().silu_mul(gate_up), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_to_fp8(dtype: torch.dtype) -> None:
    x = random(4, 300, dtype=dtype) * 3
    x[2] *= random(300, dtype=dtype).abs() ** 5  # small numbers, too
    x[3] = 0
    values, scales = to_fp8(given_to_kernels(x))
    expected, expected_scales = TorchOps().to_fp8(x)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    differ = values.float() != expected.float()
    assert differ.float().mean() < 0.01  # where two are equally near, by the last bit of the scale
    assert (values.float() - expected.float()).abs().max() <= 32


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 70, 40), (20, 300, 33)], ids=str)
def test_fp8_weight_product(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inputs, outputs = sizes
    x = random(rows, inputs, dtype=dtype) / inputs**0.5
    weight, scale = TorchOps().to_fp8(random(outputs, inputs, seed=1))
    found = fp8_weight_product(given_to_kernels(x), weight, scale.t())
    exact = x.double() @ (weight.double() * scale).t()
    assert_equal(found, exact.to(dtype), dtype)


def test_tokens_of_the_step_before_are_taken_from_the_device() -> None:
    last = torch.tensor([70, 80, -1], dtype=torch.int32)
    tokens = torch.tensor([5, -2, 0, -1, -3], dtype=torch.int32)
    assert resolve_tokens(tokens, last).tolist() == [5, 80, 0, 70, 0]  # a failed draw has no token: any will do


def sampled(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """By the kernel."""
    out = torch.full((len(draws),), -9, dtype=torch.int32)
    params = [draw.params for draw in draws]
    sample_tokens(
        logits,
        torch.tensor([draw.row for draw in draws], dtype=torch.int32),
        torch.tensor([[one.temperature, one.top_p, one.min_p] for one in params], dtype=torch.float64),
        torch.tensor([one.top_k for one in params], dtype=torch.int32),
        torch.from_numpy(random_starts(draws)),
        out,
    )
    found: list[int] = out.tolist()
    return found


@settings(max_examples=15)
@given(SOME_PARAMS, st.integers(0, 1000), st.sampled_from([40, 100]), SOME_DTYPES)
def test_the_same_tokens_are_sampled(params: list[SamplingParams], seed: int, size: int, dtype: torch.dtype) -> None:
    assert_alike(sampled, sample, (random(2, size, seed=seed) * 3).to(dtype).float(), params)


def test_of_equal_logits_the_filters_keep_the_first() -> None:
    assert_filters_keep_the_first_of_equals(sampled, sample, 6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    assert_tells_rows_that_are_not_finite(sampled, bad, 149)


def test_all_kernels_compile_for_a_gpu() -> None:
    """For which the interpreter must be off, so this is another process."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    script = Path(__file__).parents[1] / "compile_kernels.py"
    ended = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = [line.split() for line in ended.stdout.splitlines()]
    folder = Path(launch.__file__).parent
    kernels = set(re.findall(r"launch\(\s*(_\w+),", "".join(file.read_text() for file in folder.glob("*.py"))))
    assert len(kernels) >= 6
    assert {name for name, _, _ in found} >= kernels
    assert max(int(shared) for _, _, shared in found) < 99 * 1024  # what small GPUs have for a program
