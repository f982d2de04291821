"""Training on CPUs, in the precision that suits each.

Owns the choice of precision, the full-precision copies of the weights, how they change, and attention
that suits a CPU. Some CPUs multiply bfloat16 matrices several times faster than float32 ones, others
several times slower. Small steps would be lost in bfloat16, so the optimizers work on float32 copies.
Knows nothing of what is learned.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spyglass_training.learning.muon import Muon

_MAX_GRADIENT = 1.0


def fastest_dtype() -> torch.dtype:
    """The precision in which this machine multiplies faster."""
    return min((torch.float32, torch.bfloat16), key=_product_s)


def _product_s(dtype: torch.dtype) -> float:
    """Seconds that a product of the encoder's size takes, at best."""
    x, weight = torch.ones(4096, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - started)
    return min(times)


def suited_attention(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Attention for a precision within a scope: CPUs have a fast fused one for float32 only."""
    return MatrixAttention() if dtype == torch.bfloat16 else nullcontext()


class MatrixAttention(TorchFunctionMode):
    """Computes attention as two matrix products within its scope: in bfloat16 twice as fast as the fused one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention [batch, heads, tokens, size]; the mask is added to the scores."""
    shape = q.shape
    q, k, v = (x.contiguous().flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = (scores.view(*shape[:2], *scores.shape[1:]) + attn_mask).flatten(0, 1)
    return (scores.softmax(-1) @ v).view(shape)


@dataclass(frozen=True, slots=True)
class Basis:
    """How what is trained becomes a parameter: times `scale`, and a matrix also times `inputs` from the right.

    Optimizers take steps of one size in every direction. `scale` makes them larger for a parameter whose
    place needs it; `inputs`, symmetric, makes all directions of a layer's inputs equally strong.
    """

    scale: float = 1.0
    inputs: Tensor | None = None

    def outward(self, values: Tensor) -> Tensor:
        """From what is trained to the parameter, and from its gradient to that of what is trained."""
        scaled = values * self.scale
        return scaled if self.inputs is None else scaled @ self.inputs

    def inward(self, parameter: Tensor) -> Tensor:
        """The other way round."""
        values = parameter.float() / self.scale
        if self.inputs is None:
            return values
        found: Tensor = torch.linalg.solve(self.inputs, values, left=False)
        return found


@dataclass(frozen=True, slots=True)
class _Copy:
    """Float32 values behind some rows of a parameter, and their gradient's place."""

    parameter: nn.Parameter
    rows: slice
    basis: Basis
    values: Tensor
    gradient: Tensor


_Place = tuple[nn.Parameter, slice, Basis]
"""A parameter, some of its rows, and their basis."""


class Weights:
    """Float32 copies of parameters, and the optimizers that change them.

    `muon` says how the rows of a parameter are split into the matrices that Muon changes, such as a fused
    matrix into its parts; parameters without an answer are AdamW's. `basis` is that of a parameter.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        muon: Callable[[str, Tensor], list[int] | None],
        muon_rate: float,
        adam_rate: float,
        dtype: torch.dtype,
        basis: Callable[[str], Basis] = lambda name: Basis(),
    ) -> None:
        self._copies: list[_Copy] = []
        matrices: dict[tuple[int, int], list[_Place]] = defaultdict(list)
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for name, parameter in parameters:
            if sizes := muon(name, parameter):
                for end, size in zip(accumulate(sizes), sizes, strict=True):
                    rows = slice(end - size, end)
                    matrices[size, parameter.shape[1]].append((parameter, rows, basis(name)))
            else:
                values = self._copy([(parameter, slice(None), basis(name))])
                (decayed if parameter.ndim == 2 else plain).append(values)
        stacks = [self._copy(places) for places in matrices.values()]
        self._values = [*stacks, *decayed, *plain]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, adam_rate, betas=(0.9, 0.98))]
        if stacks:
            self._optimizers.append(Muon(stacks, muon_rate, dtype))
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def _copy(self, places: list[_Place]) -> Tensor:
        """Full-precision values of the places, stacked."""
        values = torch.stack([basis.inward(parameter.detach()[rows]) for parameter, rows, basis in places])
        values.grad = torch.zeros_like(values)
        for i, (parameter, rows, basis) in enumerate(places):
            self._copies.append(_Copy(parameter, rows, basis, values[i], values.grad[i]))
        return values

    @torch.no_grad()
    def step(self, share: float) -> float:
        """Takes a step at `share` of the full rates, forgets the gradients, and returns their norm."""
        for copy in self._copies:
            if copy.parameter.grad is None:
                copy.gradient.zero_()
            else:
                copy.gradient.copy_(copy.basis.outward(copy.parameter.grad[copy.rows].float()))
        norm = nn.utils.clip_grad_norm_(self._values, _MAX_GRADIENT)
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimizer.step()
        self._write_back()
        for copy in self._copies:
            copy.parameter.grad = None
        return float(norm)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {"values": self._values, "optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        for values, saved in zip(self._values, state["values"], strict=True):
            values.copy_(saved)
        for optimizer, saved_state in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        self._write_back()

    def _write_back(self) -> None:
        for copy in self._copies:
            copy.parameter[copy.rows] = copy.basis.outward(copy.values).to(copy.parameter.dtype)
