"""The Muon optimizer, for many small matrices at once.

Owns its rule: momentum, made orthogonal by Newton-Schulz iterations, times the rate. Torch's own takes
the matrices one by one, which costs four times as much for those of a small encoder.
Source: https://kellerjordan.github.io/posts/muon/
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Parameters are stacks of matrices of one shape: [matrices, rows, columns].

    `dtype` is that of the iterations, which need no precision.
    """

    def __init__(
        self,
        stacks: Iterable[Tensor],
        lr: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(stacks, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody needs closures here
        """Changes every stack. Each has a gradient."""
        for group in self.param_groups:
            for stack in group["params"]:
                state = self.state[stack]
                if not state:
                    state["momentum"] = torch.zeros_like(stack)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(stack.grad, 1 - group["momentum"])
                update = _orthogonal(stack.grad.lerp(momentum, group["momentum"]).to(self._dtype))
                rate = group["lr"] * max(1.0, stack.shape[-2] / stack.shape[-1]) ** 0.5
                stack.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def _orthogonal(stack: Tensor) -> Tensor:
    """Roughly U V^T of every matrix U S V^T."""
    x = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    update: Tensor = (x.mT if tall else x).float()
    return update
