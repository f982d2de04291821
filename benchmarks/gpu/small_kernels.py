"""A stage of the check: the product's kernels beside attention, and its products in fp8, each alone."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import GREEDY, TEMPERATURE, TOP_P, config_of
from spyglass_server.engine.messages import SamplingParams
from spyglass_server.runtime.fp8 import to_fp8
from spyglass_server.runtime.kernels.layers import add_rms_norm, rotate_and_store, silu_mul
from spyglass_server.runtime.kernels.products import fp8_weight_product
from spyglass_server.runtime.kernels.sampling import sample_tokens
from spyglass_server.runtime.linear import fp8_product
from spyglass_server.runtime.model.layers import rotary_angles, rotary_frequencies, rotate
from spyglass_server.runtime.sampler import Draw, random_starts, sample
from stage_run import StageRun
from timing import DeviceLimits, Work, device_ms, num_copies

ROWS, SMOKE_ROWS = (1, 64, 2048), (3,)
"""Tokens of a step."""
DRAWS, SMOKE_DRAWS = (1, 64), (1,)
MATRICES = ((28_672, 4096), (4096, 14_336), (57_344, 8192), (8192, 28_672))
"""Outputs and inputs of linear layers of the 11B and the 90B model."""
SMOKE_MATRICES = ((32, 16),)
PRODUCT_ROWS, SMOKE_PRODUCT_ROWS = (1, 32, 64), (2,)
BAR, FP8_BAR, TOKENS_BAR = 1e-2, 6e-2, 0.02
"""Of relative errors in bfloat16 and in fp8, and of the share of tokens that are chosen otherwise."""
SPREAD = 4.0
"""Standard deviation of logits: top_p then leaves some, not all and not one."""


class SmallKernels:
    """The cases of this stage, in the shapes of the model."""

    def __init__(self, run: StageRun) -> None:
        self._run, self._device = run, run.device
        self._dtype = torch.float32 if run.is_smoke else torch.bfloat16  # the interpreter has no bfloat16
        self._limits = DeviceLimits.kept_in(run.out, run.device)
        self._text = config_of(run.size).text

    @torch.inference_mode()
    def norm(self, rows: int) -> None:
        """What is added to the residual stream, and the norm of the sum."""
        x, delta = torch.randn(rows, self._text.hidden_size, device=self._device), self._random(rows, -1)
        weight = self._random(1, -1)[0]
        total = x + delta.float()
        expected = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.float()
        work = partial(add_rms_norm, x, delta, None, weight, 1e-5)
        self._compare(f"add_rms_norm, {rows} rows", work(), expected)
        self._compare(f"the residual stream after add_rms_norm, {rows} rows", x, total)
        self._figure("add_rms_norm", rows, 2 * x.nbytes + 2 * delta.nbytes, work)

    @torch.inference_mode()
    def silu(self, rows: int) -> None:
        size = self._text.intermediate_size
        gate_up = self._random(rows, 2 * size)
        expected = F.silu(gate_up[:, :size].float()) * gate_up[:, size:].float()
        self._compare(f"silu_mul, {rows} rows", silu_mul(gate_up), expected)
        self._figure("silu_mul", rows, 1.5 * gate_up.nbytes, partial(silu_mul, gate_up))

    @torch.inference_mode()
    def rotary(self, rows: int) -> None:
        """Rotary embedding, and keys and values to their slots."""
        text = self._text
        heads, kv_heads, head_dim = text.num_heads, text.num_kv_heads, text.head_dim
        qkv = self._random(rows, (heads + 2 * kv_heads) * head_dim)
        positions = torch.randint(0, 4096, (rows,), device=self._device).int()
        slots = torch.randperm(2 * rows, device=self._device)[:rows].int()
        k, v = (torch.zeros(2 * rows, kv_heads * head_dim, dtype=self._dtype, device=self._device) for _ in range(2))
        frequencies = rotary_frequencies(text.rope, head_dim, self._device)
        work = partial(rotate_and_store, qkv, positions, frequencies, slots, k, v, heads)
        q = work()
        parts = torch.split(qkv.float().view(rows, -1, head_dim), [heads, kv_heads, kv_heads], dim=1)
        cos, sin = rotary_angles(positions, frequencies)
        stored_k, stored_v = (x[slots.long()].view(rows, kv_heads, head_dim) for x in (k, v))
        self._compare(f"rotate_and_store, queries, {rows} rows", q, rotate(parts[0], cos, sin))
        self._compare(f"rotate_and_store, keys, {rows} rows", stored_k, rotate(parts[1], cos, sin))
        self._compare(f"rotate_and_store, values, {rows} rows", stored_v, parts[2])
        self._figure("rotate_and_store", rows, 2 * qkv.nbytes, work)

    @torch.inference_mode()
    def sampling(self, rows: int, how: str, sampling: SamplingParams) -> None:
        """Chooses tokens by the kernel and by the sampler for CPUs, with the same random numbers."""
        logits = SPREAD * torch.randn(rows, self._text.vocab_size, device=self._device)
        draws = [Draw(row=i, params=sampling, choice=0, position=i) for i in range(rows)]
        params = np.array([(sampling.temperature, sampling.top_p, sampling.min_p)] * rows)
        row_of, starts = np.arange(rows, dtype=np.int32), random_starts(draws)
        of_draws = [torch.from_numpy(numbers).to(self._device) for numbers in (row_of, params, 0 * row_of, starts)]
        out = torch.zeros(rows, dtype=torch.int32, device=self._device)

        def work() -> None:
            sample_tokens(logits, of_draws[0], of_draws[1], of_draws[2], of_draws[3], out)

        work()
        differing = np.mean(np.array(out.tolist()) != np.array(sample(logits.cpu(), draws)))
        self._run.compare("kernels", f"share of tokens that differ, {rows} rows, {how}", float(differing), TOKENS_BAR)
        limit_ms = self._limits.kernel_ms(logits.nbytes)
        self._run.figure("sample_tokens", f"{rows} rows, {how}", device_ms(self._device, work), limit_ms)

    @torch.inference_mode()
    def fp8(self, rows: int, outputs: int, inputs: int) -> None:
        """A linear layer with its weight in fp8: with its input rounded on the way, as on GPUs with fp8 units, and with
        its input as it is, as on others; beside both one in bfloat16."""
        count = num_copies(outputs * inputs) if self._run.is_gpu else 1
        x = self._random(rows, inputs)
        plain = [self._random(outputs, inputs) for _ in range(count)]
        small = [(values, scale.reshape(1, -1)) for values, scale in map(to_fp8, plain)]
        case = f"{rows} x {inputs} by {inputs} x {outputs}"
        expected = x.float() @ plain[0].float().t()
        for name, works in (
            ("fp8 product", [partial(fp8_product, x, *weight) for weight in small]),
            ("fp8 weight product", [partial(fp8_weight_product, x, *weight) for weight in small]),
        ):
            self._compare(f"{name}, {case}", works[0](), expected, FP8_BAR)
            limit_ms = self._limits.kernel_ms(outputs * inputs)
            self._run.figure(name, case, device_ms(self._device, *works), limit_ms)
        ms = device_ms(self._device, *[partial(F.linear, x, weight) for weight in plain])
        self._run.figure("bfloat16 product", case, ms, self._limits.kernel_ms(2 * outputs * inputs))

    def _random(self, rows: int, width: int) -> Tensor:
        """Of the model's width where that is -1."""
        size = self._text.hidden_size if width == -1 else width
        return torch.randn(rows, size, device=self._device, dtype=self._dtype)

    def _compare(self, what: str, value: Tensor, expected: Tensor, bar: float = BAR) -> None:
        error = float((value.float() - expected).norm() / expected.norm())
        self._run.compare("kernels", what, error, bar)

    def _figure(self, what: str, rows: int, num_bytes: float, work: Work) -> None:
        """Of a kernel whose input a kernel before it has just written, so that the limit may be below the device's
        memory's."""
        self._run.figure(what, f"{rows} rows", device_ms(self._device, work), self._limits.kernel_ms(num_bytes))


def run(run: StageRun) -> None:
    """Runs the stage."""
    kernels = SmallKernels(run)
    for rows in SMOKE_ROWS if run.is_smoke else ROWS:
        run.case(f"add_rms_norm of {rows} rows", partial(kernels.norm, rows))
        run.case(f"silu_mul of {rows} rows", partial(kernels.silu, rows))
        run.case(f"rotate_and_store of {rows} rows", partial(kernels.rotary, rows))
    for rows in SMOKE_DRAWS if run.is_smoke else DRAWS:
        for how, sampling in (("greedy", GREEDY), ("temperature", TEMPERATURE), ("temperature and top_p", TOP_P)):
            run.case(f"sampling of {rows} rows, {how}", partial(kernels.sampling, rows, how, sampling))
    for outputs, inputs in SMOKE_MATRICES if run.is_smoke else MATRICES:
        for rows in SMOKE_PRODUCT_ROWS if run.is_smoke else PRODUCT_ROWS:
            run.case(f"fp8 product of {rows} x {inputs}", partial(kernels.fp8, rows, outputs, inputs))
