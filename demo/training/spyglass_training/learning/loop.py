"""The loop of a phase: lots of examples in, changed weights out.

Owns the order of a step, the rate's course, and when progress is shown and kept. Knows nothing of what
is learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spyglass_training.learning.batches import load
from spyglass_training.learning.precision import Weights
from spyglass_training.learning.run import Run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, in steps, progress is shown and an exam is held, and how many steps the rate rises at the start."""

    log_every: int
    exam_every: int
    warmup: int


def learn(
    run: Run,
    weights: Weights,
    lots: Dataset[T],
    numbers: Sequence[int],
    loss: Callable[[T], tuple[Tensor, Mapping[str, float]]],
    exam: Callable[[], Mapping[str, float]],
    pace: Pace,
) -> None:
    """Takes a step for each of the lots with these numbers, going on where the run stopped before.

    `loss` is what to make smaller, with figures to show; `exam` tells how good the model is.
    """
    total, first = len(numbers), 0
    if saved := run.resume():
        weights.restore(saved["weights"])
        first = saved["step"]
    for done, lot in enumerate(load(lots, numbers[first:]), start=first + 1):
        wrong, figures = loss(lot)
        torch.autograd.backward(wrong)
        gradient = weights.step(rate(done - 1, total, pace.warmup))
        if done % pace.log_every == 0:
            speed = (done - first) / run.since_start_s
            run.log(done, {"loss": wrong.item(), **figures, "gradient": gradient, "steps_per_s": speed})
        if done % pace.exam_every == 0 or done == total:
            run.log(done, exam())
        if run.is_due() or done == total:
            run.save({"weights": weights.state(), "step": done})


def rate(step: int, total: int, warmup: int) -> float:
    """Share of the full rate: a short rise, then full, then a straight fall to zero over the second half."""
    return min(1.0, (step + 1) / warmup, 2 * (total - step) / total)
