"""Sampling: the filters keep what they say, and random numbers do not depend on company."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spyglass_server.engine.messages import SamplingParams
from spyglass_server.runtime.sampler import Draw, sample

LOGITS = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]])


def draw_many(params: SamplingParams, count: int = 4000) -> dict[int, float]:
    """How often each token is drawn at different positions."""
    drawn = sample(LOGITS, [Draw(row=0, params=params, choice=0, position=position) for position in range(count)])
    tokens, counts = np.unique(drawn, return_counts=True)
    return dict(zip(tokens.tolist(), (counts / count).tolist(), strict=True))


def test_temperature_zero_takes_the_best() -> None:
    for temperature in (0.0, 1e-308, 1e-3):
        assert sample(
            LOGITS.roll(2), [Draw(row=0, params=SamplingParams(temperature=temperature), choice=0, position=0)]
        ) == [2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability(temperature: float) -> None:
    shares = draw_many(SamplingParams(temperature=temperature))
    for token, probability in enumerate((LOGITS[0] / temperature).softmax(-1).tolist()):
        assert shares.get(token, 0.0) == pytest.approx(probability, abs=0.03)


def test_filters_keep_the_best() -> None:
    assert set(draw_many(SamplingParams(top_k=2))) == {0, 2}
    assert set(draw_many(SamplingParams(top_p=0.7))) == {0, 2}  # 0.64 is not yet 0.7
    assert set(draw_many(SamplingParams(top_p=1e-9))) == {0}
    assert set(draw_many(SamplingParams(min_p=0.3))) == {0, 2}  # e^-1 = 0.37, e^-2 = 0.14
    assert set(draw_many(SamplingParams(min_p=1.0))) == {0}


def test_top_p_is_of_what_top_k_leaves() -> None:
    # of tokens 0 and 2 alone, token 0 has 0.73
    assert set(draw_many(SamplingParams(top_k=2, top_p=0.72))) == {0}
    assert set(draw_many(SamplingParams(top_k=2, top_p=0.74))) == {0, 2}


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            top_p=st.sampled_from([0.1, 0.9, 1.0]),
            top_k=st.sampled_from([0, 1, 7, 999]),
            min_p=st.sampled_from([0.0, 0.2]),
            seed=st.integers(0, 2**64 - 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_choice_does_not_depend_on_its_company(params: list[SamplingParams]) -> None:
    logits = torch.randn(len(params), 300, generator=torch.Generator().manual_seed(1)) * 3
    draws = [Draw(row=i, params=one, choice=i % 2, position=10 + i) for i, one in enumerate(params)]
    together = sample(logits, draws)
    alone = [
        sample(logits[i : i + 1], [Draw(row=0, params=d.params, choice=d.choice, position=d.position)])[0]
        for i, d in enumerate(draws)
    ]
    assert together == alone


def test_random_numbers_differ_by_seed_choice_and_position() -> None:
    logits = torch.zeros(1, 1 << 16)
    draws = [
        Draw(row=0, params=SamplingParams(seed=seed), choice=choice, position=position)
        for seed in (0, 1, 2**64 - 1)
        for choice in range(3)
        for position in range(3)
    ]
    assert len(set(sample(logits, draws))) == 27


def test_tokens_are_as_independent_as_their_probabilities() -> None:
    drawn = np.array(
        sample(
            torch.zeros(1, 1000), [Draw(row=0, params=SamplingParams(), choice=0, position=at) for at in range(20_000)]
        )
    )
    counts = np.bincount(drawn, minlength=1000)
    assert 800 < ((counts - 20) ** 2 / 20).sum() < 1200  # chi-square of 999 degrees of freedom
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("params", [{}, {"top_p": 0.95}, {"min_p": 0.02}, {"top_k": 200}])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rounding_changes_hardly_a_choice(params: dict[str, Any], temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(400, 5000, generator=generator) * 2
    noisy = logits + torch.randn(logits.shape, generator=generator) * 1e-5
    draws = [
        Draw(row=i, params=SamplingParams(temperature=temperature, **params), choice=0, position=i) for i in range(400)
    ]
    changed = sum(one != other for one, other in zip(sample(logits, draws), sample(noisy, draws), strict=True))
    assert changed <= 1
