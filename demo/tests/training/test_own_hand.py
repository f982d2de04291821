"""The training's own hand: what it draws and what it teaches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyglass_training.exam.judge import KINDS, accepts
from spyglass_training.exam.own_hand import example, example_with_answer


@settings(max_examples=150)
@given(st.sampled_from(KINDS), st.integers(0, 2**31))
def test_what_is_taught_is_what_the_exam_wants(kind: str, seed: int) -> None:
    drawn, answer = example_with_answer(kind, seed)
    assert accepts(answer, drawn), (drawn.question, answer, drawn.expected)
    assert all(90 <= side <= 1510 for side in drawn.picture.size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_always_gives_the_same(kind: str) -> None:
    one, two, another = example(kind, 5), example(kind, 5), example(kind, 6)
    assert (one.question, one.expected) == (two.question, two.expected)
    assert np.array_equal(np.asarray(one.picture), np.asarray(two.picture))
    assert one.picture.size != another.picture.size or one.picture.tobytes() != another.picture.tobytes()
