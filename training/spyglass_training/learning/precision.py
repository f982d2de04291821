"""bfloat16 training on CPUs.

Owns the full-precision copies of the weights, how they change, and attention that suits a CPU. A modern
CPU multiplies bfloat16 matrices several times faster than float32 ones; small steps would be lost in
them, so the optimizers work on float32 copies. Knows nothing of what is learned.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spyglass_training.learning.muon import Muon

_MAX_GRADIENT = 1.0


class MatrixAttention(TorchFunctionMode):
    """Computes attention as two matrix products within its scope: on CPUs twice as fast as the fused one."""

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
class _Copy:
    """Float32 values of some rows of a parameter, divided by `scale`, and their gradient's place."""

    parameter: nn.Parameter
    rows: slice
    scale: float
    values: Tensor
    gradient: Tensor


_Place = tuple[nn.Parameter, slice, float]
"""A parameter, some of its rows, and its scale."""


class Weights:
    """Float32 copies of parameters, and the optimizers that change them.

    `muon` says how the rows of a parameter are split into the matrices that Muon changes, such as a fused
    matrix into its parts; parameters without an answer are AdamW's. `scale` is how many times faster than
    others a parameter changes.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        muon: Callable[[str, Tensor], list[int] | None],
        muon_rate: float,
        adam_rate: float,
        scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self._copies: list[_Copy] = []
        matrices: dict[tuple[int, int], list[_Place]] = defaultdict(list)
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for name, parameter in parameters:
            if sizes := muon(name, parameter):
                for end, size in zip(accumulate(sizes), sizes, strict=True):
                    rows = slice(end - size, end)
                    matrices[size, parameter.shape[1]].append((parameter, rows, scale(name)))
            else:
                values = self._copy([(parameter, slice(None), scale(name))])
                (decayed if parameter.ndim == 2 else plain).append(values)
        stacks = [self._copy(places) for places in matrices.values()]
        self._values = [*stacks, *decayed, *plain]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, adam_rate, betas=(0.9, 0.98))]
        if stacks:
            self._optimizers.append(Muon(stacks, muon_rate))
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def _copy(self, places: list[_Place]) -> Tensor:
        """Full-precision values of the places, stacked."""
        values = torch.stack([parameter.detach()[rows].float() / scale for parameter, rows, scale in places])
        values.grad = torch.zeros_like(values)
        for i, (parameter, rows, scale) in enumerate(places):
            self._copies.append(_Copy(parameter, rows, scale, values[i], values.grad[i]))
        return values

    @torch.no_grad()
    def step(self, share: float) -> float:
        """Takes a step at `share` of the full rates, forgets the gradients, and returns their norm."""
        for copy in self._copies:
            if copy.parameter.grad is None:
                copy.gradient.zero_()
            else:
                copy.gradient.copy_(copy.parameter.grad[copy.rows]).mul_(copy.scale)
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
            copy.parameter[copy.rows] = (copy.values * copy.scale).to(copy.parameter.dtype)


def schedule(step: int, total: int, warmup: int = 100) -> float:
    """Share of the full rate: a short rise, then full, then a straight fall to zero over the second half."""
    return min(1.0, (step + 1) / warmup, 2 * (total - step) / total)
