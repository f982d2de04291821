"""The kernels for CPUs: what they compute, beside PyTorch, and that a row's results do not depend on its neighbours."""

import ctypes
import os
import shutil
import subprocess
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sampling_cases import (
    SOME_DTYPES,
    SOME_PARAMS,
    assert_alike,
    assert_filters_keep_the_first_of_equals,
    assert_tells_rows_that_are_not_finite,
)
from spyglass_server.engine.messages import EngineRequest, ImageInput, ImageKey, SamplingParams
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.linear import CONVERTERS, Int8Linear
from spyglass_server.runtime.model.layers import grouped_attention, rotary_angles, rotate
from spyglass_server.runtime.native import compiled
from spyglass_server.runtime.native.compiled import load_library
from spyglass_server.runtime.native.kernels import Buffers, Kernels, load_kernels
from spyglass_server.runtime.native.reads import Reads, RunLengths, TokenReads
from spyglass_server.runtime.ops import TorchOps
from spyglass_server.runtime.runner import ModelRunner
from spyglass_server.runtime.sampler import Draw, sample_finite

CPU = torch.device("cpu")
ORDER = ["DEFAULT", "AVX2", "AVX512"]
CAPABILITY = torch.backends.cpu.get_cpu_capability()
FORMS = ("float32", "bfloat16", "int8")

torch.manual_seed(0)


@pytest.fixture(params=["AVX2", "AVX512", "AVX512 without matrix units"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    capability, *without = request.param.split(maxsplit=1)
    if ORDER.index(capability) > ORDER.index(CAPABILITY):
        pytest.skip("this processor cannot run them")
    found = load_kernels(capability)
    assert found is not None, "a C compiler is needed"
    if without:
        found = copy(found)
        found._has_units = False
    return found


def weight_of(form: str, columns: int, depth: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """A weight with its scale as it is kept, and as numbers."""
    linear = nn.Linear(depth, columns, bias=False)
    if form == "int8":
        quantized = Int8Linear(linear)
        kept = quantized.get_buffer("_weight"), quantized.get_buffer("_scale")
        return kept, kept[0].double() * kept[1].double()[:, None]
    weight = linear.weight.detach().to(getattr(torch, form))
    return (weight,), weight.double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("columns", "depth"), [(1, 2), (32, 64), (45, 96), (100, 6), (257, 160)])
@torch.inference_mode()
def test_products(kernels: Kernels, form: str, columns: int, depth: int) -> None:
    (weight, *scale), exact = weight_of(form, columns, depth)
    panels = kernels.pack((weight,), scale)
    x = torch.randn(70, depth)
    found = kernels.linear(x, panels)
    # the matrix units round inputs to bfloat16 as the reference does
    wanted = (x.bfloat16() if panels.uses_units else x).double() @ exact.t()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    for count in (*range(1, 34), 69):
        assert torch.equal(kernels.linear(x[:count], panels), found[:count])
    assert torch.equal(kernels.linear(x[41:43], panels), found[41:43])


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_gated_products(kernels: Kernels, form: str) -> None:
    (gate, exact_gate), (up, exact_up) = (weight_of(form, 75, 64) for _ in range(2))
    panels = kernels.pack(*zip(gate, up, strict=True))
    x = (5 * torch.randn(20, 64)).bfloat16().float()
    found = kernels.linear(x, panels)
    wanted = F.silu(x.double() @ exact_gate.t()) * (x.double() @ exact_up.t())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(kernels.linear(x[7:8], panels), found[7:8])


@torch.inference_mode()
def test_recorded_products_of_one_width_do_not_write_over_each_other(kernels: Kernels) -> None:
    gate, up, down = (weight_of("float32", 64, 64)[0] for _ in range(3))
    gated, after = kernels.pack(*zip(gate, up, strict=True)), kernels.pack(down)
    x = torch.randn(20, 64)
    wanted = kernels.linear(kernels.linear(x, gated), after)
    with kernels.recording(Buffers(8)) as program:
        found = kernels.linear(kernels.linear(x, gated), after)
    kernels.run(program.sealed())
    assert torch.equal(found, wanted)


@torch.inference_mode()
def test_gates_of_any_size(kernels: Kernels) -> None:
    gates = torch.tensor([0.0, 1e-30, 1.0, -1.0, 20.0, -20.0, 87.0, -87.0, 88.5, -88.5, 1e4, -1e4, 1e38, -1e38])
    panels = kernels.pack((F.pad(gates[:, None], (0, 1)), torch.ones(len(gates), 2)))
    found = kernels.linear(torch.tensor([[1.0, 0.0]]), panels)[0]
    torch.testing.assert_close(found, F.silu(gates), rtol=1e-5, atol=1e-30)


@torch.inference_mode()
def test_what_is_no_number_stays_so_in_its_row(kernels: Kernels) -> None:
    (weight,), _ = weight_of("float32", 64, 64)
    for panels in (kernels.pack((weight,)), kernels.pack((weight[:32], weight[32:]))):
        x = torch.randn(3, 64)
        alone = kernels.linear(x[:1], panels)
        x[1, 5] = torch.nan
        found = kernels.linear(x, panels)
        assert found[1].isnan().all()
        assert torch.equal(found[:1], alone)


@pytest.mark.parametrize("size", [1, 16, 40, 576])
@torch.inference_mode()
def test_norms(kernels: Kernels, size: int) -> None:
    x, added = torch.randn(50, size), torch.randn(50, size)
    weight, gate = torch.randn(size), torch.tensor([0.3])
    cases: tuple[tuple[Tensor | None, Tensor | None], ...] = ((None, None), (added, None), (added, gate))
    for extra, factor in cases:
        wanted = TorchOps().add_rms_norm(x.clone(), extra, factor, weight, 1e-5)
        found = kernels.add_rms_norm(x.clone(), extra, factor, weight, 1e-5)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        near = None if extra is None else extra[9:11]
        assert torch.equal(kernels.add_rms_norm(x[9:11].clone(), near, factor, weight, 1e-5)[1], found[1][9:11])


@torch.inference_mode()
def test_norms_of_what_other_layers_give_in_bfloat16(kernels: Kernels) -> None:
    x, weight = torch.randn(6, 40).bfloat16(), torch.randn(40)
    found = kernels.add_rms_norm(x, x, None, weight, 1e-5)
    assert [one.dtype for one in found] == [torch.float32] * 2
    torch.testing.assert_close(found, TorchOps().add_rms_norm(x.float(), x, None, weight, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rotating_and_storing(kernels: Kernels, dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim, tokens = 6, 2, 20, 11
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    angles = rotary_angles(torch.arange(5, 5 + tokens), torch.rand(head_dim // 2))
    keys, values = (torch.zeros(40, kv_heads * head_dim, dtype=dtype) for _ in range(2))
    slots = torch.randperm(40)[:tokens]
    q = kernels.rotate_and_store(qkv, angles, slots, (keys, values), heads)
    split = qkv.view(tokens, -1, head_dim)
    rotated = rotate(split[:, : heads + kv_heads], *angles)
    torch.testing.assert_close(q, rotated[:, :heads])
    torch.testing.assert_close(keys[slots], rotated[:, heads:].flatten(1).to(dtype))
    assert torch.equal(values[slots], split[:, heads + kv_heads :].flatten(1).to(dtype))
    others = [slot for slot in range(40) if slot not in slots.tolist()]
    assert not keys[others].any()
    assert not values[others].any()


def exact_reads(slots: Tensor, begins: Tensor, counts: Tensor, num_runs: int) -> Reads:
    """Of tokens in as many runs of equal length."""
    runs = torch.arange(num_runs + 1) * (len(counts) // num_runs)
    return Reads().set(TokenReads(slots=slots, begins=begins, counts=counts, runs=runs, num_exact=num_runs))


def slots_of(count: int, kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    keys, values = (torch.randn(count, kv_heads, head_dim).to(dtype) for _ in range(2))
    return keys, values


def attention_of(q: Tensor, stored: tuple[Tensor, Tensor], slots: Tensor) -> Tensor:
    """Of a single query [heads, head_dim]."""
    k, v = (one[slots].double().transpose(0, 1)[None] for one in stored)
    return grouped_attention(q.double()[None, None], k, v)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 8), (16, 2, 128), (5, 1, 40)])
@torch.inference_mode()
def test_attention(kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    counts = [1, 3, 64, 65, 130, 512, 513, 1400]
    stored = slots_of(2000, kv_heads, head_dim, dtype)
    own = [torch.randperm(2000)[:count] for count in counts]
    q = 2 * torch.randn(len(counts), heads, head_dim)

    def attend(some: list[int]) -> Tensor:
        lengths = torch.tensor([counts[i] for i in some])
        reads = exact_reads(torch.cat([own[i] for i in some]), lengths.cumsum(0) - lengths, lengths, len(some))
        return kernels.attention(q[some], stored, reads)

    found = attend(list(range(len(counts))))
    for i, slots in enumerate(own):
        torch.testing.assert_close(found[i].double(), attention_of(q[i], stored, slots), rtol=1e-4, atol=1e-5)
    for some in ([0], [7], [2, 1], [6, 3, 5]):
        assert torch.equal(attend(some), found[some])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 8), (16, 2, 128), (5, 1, 40), (3, 3, 80)]
)
@torch.inference_mode()
def test_attention_of_many_tokens(
    kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> None:
    """Some are alone, then runs, of which each token sees a slot more than the one before; after them some that all see
    the same."""
    alone, runs, same = 3, (1, 40, 100), 70
    stored = slots_of(1500, kv_heads, head_dim, dtype)
    slots = torch.randperm(1500)
    begins, counts = [0] * alone, [5, 130, 600]
    for i, count in enumerate(runs):
        begins += [100 * i] * count
        counts += [37 * i + 1 + back for back in range(count)]
    begins += [0] * same
    counts += [1001] * same
    starts = [0, 1, 2, 3, 4, 44, 144, 144 + same]
    reads = Reads().set(
        TokenReads(
            slots=slots,
            begins=torch.tensor(begins),
            counts=torch.tensor(counts),
            runs=torch.tensor(starts),
            num_exact=alone,
        )
    )
    q = 2 * torch.randn(len(counts), heads, head_dim)
    found = kernels.attention(q, stored, reads)
    # what meets bfloat16 in matrix units is rounded to 16 bits
    precise = dtype == torch.float32 or not kernels._has_units
    for i, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        wanted = attention_of(q[i], stored, slots[begin : begin + count])
        torch.testing.assert_close(found[i].double(), wanted, rtol=1e-4, atol=1e-5 if precise else 3e-4)


@torch.inference_mode()
def test_attention_to_what_is_no_number_hurts_its_row_alone(kernels: Kernels) -> None:
    stored = slots_of(100, 2, 32)
    stored[0][70] = torch.nan
    reads = exact_reads(torch.arange(100), torch.tensor([0, 0]), torch.tensor([70, 71]), 1)
    found = kernels.attention(torch.randn(2, 2, 32), stored, reads)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@torch.inference_mode()
def test_attention_of_many_tokens_to_what_is_no_number_gives_none(kernels: Kernels) -> None:
    stored = slots_of(100, 2, 32)
    stored[0][70] = torch.nan
    tokens = torch.zeros(40, dtype=torch.int64)
    reads = TokenReads(
        slots=torch.arange(100), begins=tokens, counts=tokens + 100, runs=torch.tensor([0, 40]), num_exact=0
    )
    assert kernels.attention(torch.randn(40, 2, 32), stored, Reads().set(reads)).isnan().all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    params=SOME_PARAMS,
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 15, 40, 100, 3001, 20_000]),
    dtype=SOME_DTYPES,
)
def test_the_same_tokens_are_sampled(
    kernels: Kernels, params: list[SamplingParams], seed: int, size: int, dtype: torch.dtype
) -> None:
    wide = torch.randn(2, size + 3, generator=torch.Generator().manual_seed(seed)) * 3  # rows lie apart
    assert_alike(kernels.sample, sample_finite, wide.to(dtype).float()[:, :size], params)


def test_the_smallest_temperature_draws_among_equals(kernels: Kernels) -> None:
    for seed in range(10):
        assert_alike(kernels.sample, sample_finite, torch.zeros(2, 50), [SamplingParams(temperature=1e-308, seed=seed)])


def test_of_equal_logits_the_filters_keep_the_first(kernels: Kernels) -> None:
    assert_filters_keep_the_first_of_equals(kernels.sample, sample_finite, 40)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 100, 149])
def test_rows_that_cannot_be_sampled_from_are_told(kernels: Kernels, bad: float, at: int) -> None:
    for sample in (kernels.sample, sample_finite):
        assert_tells_rows_that_are_not_finite(sample, bad, at)


def test_many_draws_come_as_often_as_their_probability(kernels: Kernels) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]])
    draws = [Draw(row=0, params=SamplingParams(), choice=0, position=position) for position in range(20_000)]
    shares = torch.bincount(torch.tensor(kernels.sample(logits, draws)), minlength=5) / len(draws)
    torch.testing.assert_close(shares, logits[0].softmax(0), rtol=0, atol=0.012)


def test_the_threads_are_those_of_torch(kernels: Kernels) -> None:
    """A second library of OpenMP's would have threads of its own, which wait actively beside the first one's."""
    maps = Path("/proc/self/maps").read_text()
    loaded = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}
    parallel = ctypes.CDLL(None)
    assert hasattr(parallel, "GOMP_parallel")
    assert len([name for name in loaded if "torch" in name]) == 1
    library = load_library("AVX2", os.environ)
    assert library is not None
    assert not any("libgomp" in name and "torch" not in name and "scikit" not in name for name in loaded)


# --- whole steps -----------------------------------------------------------------------------------


def runner_of(folder: Path, dtype: torch.dtype = torch.float32, **options: bool) -> ModelRunner:
    model = load_model(folder, load_config(folder), dtype, CPU)
    return ModelRunner(model, 400, 16, 16, dtype, CPU, max_batch=8, **options)


def row(number: int, start: int, tokens: tuple[int, ...], num_drafts: int = 0, tiles: tuple[int, ...] = ()) -> Row:
    request = EngineRequest(
        id=number,
        tokens=(),
        max_tokens=9,
        sampling=SamplingParams(temperature=0.0),
        image_positions=(1,) if tiles else (),
    )
    pages = tuple(range(number * 20, number * 20 + -(-(start + len(tokens)) // 16)))
    return Row(
        request=request,
        tokens=tokens,
        start=start,
        pages=pages,
        choices=(0,),
        num_drafts=num_drafts,
        image_tiles=(tiles,) if tiles else (),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_program_gives_what_the_layers_give(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    """Bit by bit, with ever more and fewer rows, all of which are sampled, or some."""
    runner = runner_of(tiny_checkpoint, dtype)
    prompts = [row(i, 0, tuple(20 + (7 * i + j) % 100 for j in range(3 + 29 * i))) for i in range(7)]
    runner.execute(prompts)
    for count in (1, 3, 7, 2, 1, 7):
        rows = [row(i, len(prompts[i].tokens), (40 + i,)) for i in range(count)]
        alone = torch.stack([runner.logits(one)[-1] for one in rows])
        plan = runner.plan(rows)
        for sampled in (range(count), range(count - 1, -1, -1), [count - 1], [0] * (count + 1)):
            found = runner.forward(replace(plan, sampled=torch.tensor(sampled))).logits
            assert found is not None
            assert torch.equal(found, alone[list(sampled)])
    made = runner._backend._programs._programs  # type: ignore[attr-defined]
    assert {count for count, _, _ in made} == {1, 2, 3, 7}


@pytest.mark.parametrize("tiles", [(), (1, 2)])
def test_a_program_gives_what_the_layers_give_for_a_prompt(tiny_checkpoint: Path, tiles: tuple[int, ...]) -> None:
    runner = runner_of(tiny_checkpoint)
    runner._memory.images._slots.normal_()
    for count in (2, 30, 128, 129):
        prompt = row(0, 0, tuple(20 + 3 * i % 100 for i in range(count)), tiles=tiles)
        found = runner.forward(runner.plan([prompt])).logits
        assert found is not None
        assert torch.equal(found, runner.logits(prompt)[-1:])
    made = runner._backend._programs._programs  # type: ignore[attr-defined]
    assert [key for key in made if key[0] > 30] == [(128, 127 if tiles else 0, False)]


@pytest.mark.parametrize("count", [2, 30])
def test_prompts_of_few_tokens_are_computed_as_without_kernels(
    tiny_checkpoint: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are many threads, they share what a token reads: two prompts with two pictures each."""
    monkeypatch.setattr(RunLengths, "leave_idle", lambda lengths, few: few < 20)
    logits = []
    for has_kernels in (True, False):
        runner = runner_of(tiny_checkpoint, has_kernels=has_kernels)
        generator = torch.Generator().manual_seed(0)
        runner._memory.images._slots.normal_(generator=generator)
        rows = [row(i, 0, tuple(range(20, 20 + each)), tiles=(i, 5)) for i, each in enumerate((40, count, 9))]
        two = [replace(one.request, image_positions=(0, one.end - 1)) for one in rows]
        rows = [
            replace(one, request=request, image_tiles=((2,), (3, 4))) for one, request in zip(rows, two, strict=True)
        ]
        found = runner.forward(runner.plan(rows)).logits
        assert found is not None
        logits.append(found.clone())
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_a_prompts_runs_fill_the_lanes_and_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = RunLengths(lanes=32, heads=32, kv_heads=8, head_dim=128)
    for threads in (1, 2, 16, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for count in (1, 8, 20, 100, 512, 4000):
            length = lengths.of(count)
            assert 1 <= length * 4 <= 16 * 32
            assert lengths.leave_idle(count) == (-(-count // length) * 8 < threads)
    wide = RunLengths(lanes=32, heads=1, kv_heads=1, head_dim=512)
    assert wide.of(10_000) <= 4 * 32


def test_programs_that_are_not_used_are_forgotten(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spyglass_server.runtime.cpu.programs._MAX_PROGRAMS", 2)
    runner = runner_of(tiny_checkpoint)
    for count in (3, 2, 3, 5):
        runner.execute([row(0, 0, tuple(range(20, 20 + count)))])
    made = runner._backend._programs._programs  # type: ignore[attr-defined]
    assert [count for count, _, _ in made] == [3, 5]


@pytest.mark.parametrize("seeing", [(0, 1, 2, 3), (0, 2), ()])
def test_programs_for_rows_that_see_pictures(tiny_checkpoint: Path, seeing: tuple[int, ...]) -> None:
    """Each row gets what it gets alone, however many of them do."""
    runner = runner_of(tiny_checkpoint)
    runner._memory.images._slots.normal_()
    tiles = {i: tuple(range(3 * i, 3 * i + 1 + i % 3)) for i in seeing}
    runner.execute([row(i, 0, tuple(range(20, 30 + i)), tiles=tiles.get(i, ())) for i in range(4)])
    rows = [row(i, 10 + i, (50 + i,), tiles=tiles.get(i, ())) for i in range(4)]
    together = runner.forward(runner.plan(rows)).logits
    assert together is not None
    programs = runner._backend._programs._programs  # type: ignore[attr-defined]
    assert [key for key in programs if key[0] == 4] == [(4, len(seeing), True)]
    assert torch.equal(together, torch.stack([runner.logits(one)[0] for one in rows]))
    together = together.clone()  # programs use the same memory
    again = runner.forward(runner.plan(rows[1:])).logits
    assert again is not None
    assert torch.equal(again, together[1:])


def test_what_torch_computes_is_in_no_program(tiny_checkpoint: Path) -> None:
    convert = CONVERTERS["fp8"]
    model = load_model(tiny_checkpoint, load_config(tiny_checkpoint), torch.float32, CPU, convert)
    runner = ModelRunner(model, 400, 16, 16, torch.float32, CPU, max_batch=8)
    one = row(0, 0, (20,))
    found = runner.forward(runner.plan([one])).logits
    assert found is not None
    assert torch.equal(found, runner.logits(one))
    assert not runner._backend._programs._programs  # type: ignore[attr-defined]


@given(sizes=st.lists(st.tuples(st.integers(0, 250), st.integers(1, 6)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_guesses_have_the_logits_that_they_would_have_alone(
    tiny_checkpoint: Path, sizes: list[tuple[int, int]]
) -> None:
    runner = _shared_runner(tiny_checkpoint)
    texts = [tuple(30 + (11 * i + 3 * j) % 90 for j in range(start + count)) for i, (start, count) in enumerate(sizes)]
    for i, (start, _) in enumerate(sizes):
        if start:
            runner.execute([row(i, 0, texts[i][:start])])
    one_by_one = [
        runner.logits(row(i, start + back, (texts[i][start + back],)))[0]
        for i, (start, count) in enumerate(sizes)
        for back in range(count)
    ]
    rows = [row(i, start, texts[i][start:], num_drafts=count - 1) for i, (start, count) in enumerate(sizes)]
    together = runner.forward(runner.plan(rows)).logits
    assert together is not None
    assert torch.equal(together, torch.stack(one_by_one))


_runners: dict[Path, ModelRunner] = {}


def _shared_runner(folder: Path) -> ModelRunner:
    if folder not in _runners:
        _runners[folder] = runner_of(folder)
    return _runners[folder]


def test_with_and_without_kernels_the_logits_are_the_same(tiny_checkpoint: Path) -> None:
    rows = [row(0, 0, tuple(range(20, 90)))]
    ours, torchs = (runner_of(tiny_checkpoint, has_kernels=has).logits(rows[0]) for has in (True, False))
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_kernels_pictures_have_the_same_states(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    states = []
    for has_kernels in (True, False):
        runner = runner_of(tiny_checkpoint, dtype, has_kernels=has_kernels)
        runner._memory.images._slots.zero_()
        image = ImageInput(key=ImageKey("tenant", b"digest"), rows=1, columns=2, memory_name="")
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(256, (2 * 3 * runner.tile_side**2,), dtype=torch.uint8, generator=generator)
        runner.take_pixels(image, pixels.numpy().tobytes())
        while not runner.encode_image(image.key, (3, 5)):
            pass
        states.append(runner._memory.images._slots.float())
    assert states[0].any()
    close = {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(states[0], states[1], rtol=close, atol=close)


# --- compiling -------------------------------------------------------------------------------------


def test_a_library_is_compiled_once(tmp_path: Path) -> None:
    environ = dict(os.environ) | {"XDG_CACHE_HOME": str(tmp_path)}
    assert load_library("AVX2", environ) is not None
    [made] = (tmp_path / "spyglass" / "kernels").iterdir()
    before = made.stat().st_mtime_ns
    assert load_library("AVX2", environ) is not None
    assert [*made.parent.iterdir()] == [made]
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize("level", sorted(compiled._LEVELS.values()))
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_kernels_compile_for_every_processor(compiler: str, level: str) -> None:
    """Also for processors that this machine does not have."""
    if shutil.which(compiler) is None and not (compiler == "gcc" and "CI" in os.environ):
        pytest.skip(f"there is no {compiler}")
    command = [compiler, *compiled._FLAGS, f"-march={level}", "-fsyntax-only", str(compiled._SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    environ = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert load_library("AVX2", environ) is None
    assert "no C compiler" in caplog.text
    assert load_library("DEFAULT", dict(os.environ)) is None
    assert "no AVX2" in caplog.text


@pytest.mark.parametrize("body", ["exit 1", "touch kernels.o", 'for last; do :; done; echo nothing > "$last"'])
def test_a_compiler_that_fails_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.chdir(tmp_path)
    compiler = tmp_path / "gcc"
    compiler.write_text(f"#!/bin/sh\n{body}\n")
    compiler.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    assert load_library("AVX2", environ) is None
    assert "cannot be compiled" in caplog.text


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "spyglass" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert load_library("AVX2", dict(os.environ) | {"XDG_CACHE_HOME": str(tmp_path)}) is not None
    assert "others may write" in caplog.text
    assert not [*folder.iterdir()]


def test_where_nothing_can_be_kept_it_is_compiled_for_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spyglass").write_text("in the way")
    assert load_library("AVX2", dict(os.environ) | {"XDG_CACHE_HOME": str(tmp_path)}) is not None
    assert "compiled at every start" in caplog.text
