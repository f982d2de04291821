"""What every way to sample must do alike: PyTorch's, and kernels for GPUs and CPUs."""

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from spyglass_server.engine.messages import SamplingParams
from spyglass_server.runtime.sampler import Draw

Sample = Callable[[Tensor, Sequence[Draw]], list[int]]
"""Draws from rows of logits [rows, vocabulary]."""

SOME_PARAMS = st.lists(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1e-308, 0.3, 1.0, 2.0]),
        top_p=st.sampled_from([1e-9, 0.1, 0.9, 1.0]),
        top_k=st.sampled_from([0, 1, 7, 999]),
        min_p=st.sampled_from([0.0, 0.2]),
        seed=st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=4,
)
SOME_DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
"""Those of logits; in bfloat16 many are equal."""


def assert_alike(ours: Sample, theirs: Sample, logits: Tensor, params: Sequence[SamplingParams]) -> None:
    """Both draw the same from logits [2, vocabulary], of which the first row is masked as grammars leave it."""
    logits[0, 1::3] = -torch.inf
    draws = [Draw(row=i % 2, params=one, choice=i % 2, position=10 + i) for i, one in enumerate(params)]
    assert ours(logits, draws) == theirs(logits, draws)


def assert_filters_keep_the_first_of_equals(ours: Sample, theirs: Sample, num_draws: int) -> None:
    logits = torch.zeros(1, 50)
    for params in ({"top_k": 3}, {"top_p": 0.059}, {"top_k": 30, "top_p": 0.099}):
        draws = [Draw(row=0, params=SamplingParams(seed=i, **params), choice=0, position=0) for i in range(num_draws)]
        found = ours(logits, draws)
        assert found == theirs(logits, draws)
        assert set(found) == {0, 1, 2}


def assert_tells_rows_that_are_not_finite(sample: Sample, bad: float, at: int) -> None:
    """A number among 150 is `bad`; then all of the row are masked."""
    logits = torch.randn(3, 150, generator=torch.Generator().manual_seed(0))
    logits[1, at] = bad
    draws = [
        Draw(row=row, params=SamplingParams(temperature=t), choice=0, position=0)
        for row in range(3)
        for t in (0.0, 1.0)
    ]
    assert [token == -1 for token in sample(logits, draws)] == [False, False, True, True, False, False]
    logits[1] = -torch.inf
    assert sample(logits, draws)[2:4] == [-1, -1]
