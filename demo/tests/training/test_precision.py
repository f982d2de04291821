"""Weights are changed in a basis of their own, and come out in the model's."""

import pytest
import torch
from torch import Tensor, nn

from spyglass_training.learning.loop import rate
from spyglass_training.learning.precision import Basis, Weights, fastest_dtype


def stretched(directions: int = 6) -> Tensor:
    """A symmetric matrix that makes some directions a hundred times stronger than others."""
    torch.manual_seed(1)
    axes, _ = torch.linalg.qr(torch.randn(directions, directions))
    found: Tensor = axes * torch.logspace(-1, 1, directions) @ axes.T
    return found


@pytest.mark.parametrize("basis", [Basis(), Basis(scale=8.0), Basis(inputs=stretched())])
def test_what_goes_into_a_basis_comes_out_again(basis: Basis) -> None:
    weight = torch.randn(4, 6)
    torch.testing.assert_close(basis.outward(basis.inward(weight)), weight)


def test_weights_start_and_end_as_the_models() -> None:
    parameter = nn.Parameter(torch.randn(4, 6))
    before = parameter.detach().clone()
    weights = Weights(
        [("w", parameter)], lambda name, p: [2, 2], 0.1, 0.1, torch.float32, lambda _: Basis(inputs=stretched())
    )
    saved = weights.state()
    weights.restore(saved)
    torch.testing.assert_close(parameter.detach(), before)


def test_a_weak_direction_is_learned_as_fast_in_a_basis_that_makes_it_strong() -> None:
    """Inputs that hardly differ: without the basis the optimizer's steps are too small to tell them apart."""
    torch.manual_seed(2)
    meaning = torch.randn(64, 6)
    inputs, wanted = meaning @ torch.linalg.inv(stretched()), meaning @ torch.randn(6, 4) * 0.1
    losses = [loss_after_steps(basis, inputs, wanted) for basis in (Basis(), Basis(inputs=stretched()))]
    assert losses[1] < 0.5 * losses[0]


def loss_after_steps(basis: Basis, inputs: Tensor, wanted: Tensor) -> float:
    """What is left of the loss of a linear layer after 60 steps."""
    parameter = nn.Parameter(torch.zeros(4, 6))
    weights = Weights([("w", parameter)], lambda name, p: [4], 0.01, 0.01, torch.float32, lambda name: basis)
    for _ in range(60):
        torch.autograd.backward((inputs @ parameter.T - wanted).square().mean())
        weights.step(1.0)
    return (inputs @ parameter.detach().T - wanted).square().mean().item()


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [rate(step, 100, warmup=10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[10:50] == [1.0] * 40
    assert shares[50:] == sorted(shares[50:], reverse=True)
    assert 0 < shares[-1] < 0.05


def test_the_fastest_precision_is_one_that_can_be_trained_in() -> None:
    assert fastest_dtype() in (torch.float32, torch.bfloat16)
