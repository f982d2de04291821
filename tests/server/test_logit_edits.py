"""What is done to logits before a token is chosen: penalties, biases, banned tokens, grammars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grammars import Allows
from spyglass_server.engine.messages import EngineRequest, SamplingParams
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.cpu.backend import edited_logits
from spyglass_server.runtime.logit_edits import LogitEdits
from spyglass_server.runtime.sampler import top_logprobs

LOGITS = torch.tensor([[2.0, -2.0, 1.0, 0.5]])


def row(history: tuple[int, ...] = (), num_prompt: int = 0, **fields: Any) -> Row:
    banned, matcher = frozenset(fields.pop("banned_token_ids", ())), fields.pop("matcher", None)
    request = EngineRequest(
        id=0, tokens=history[:num_prompt], max_tokens=1, sampling=SamplingParams(**fields), stop_token_ids=banned
    )
    return Row(
        request=request,
        tokens=(),
        start=0,
        pages=(),
        choices=(0,),
        history=history,
        may_stop=not banned,
        matcher=matcher,
    )


def process_logits(logits: torch.Tensor, rows: Sequence[Row]) -> tuple[torch.Tensor, dict[int, str]]:
    edits = LogitEdits.of(rows, logits.shape[1])
    return edited_logits(logits, edits), edits.failed


def steered(*rows: Row) -> list[list[float]]:
    logits, failed = process_logits(LOGITS.expand(len(rows), -1), rows)
    assert not failed
    found: list[list[float]] = logits.tolist()
    return found


def test_nothing_is_copied_where_nothing_is_asked() -> None:
    logits = LOGITS.clone()
    assert process_logits(logits, [row((0, 1, 2), 1)])[0] is logits


def test_penalties_count_the_answer_only() -> None:
    once, twice = row((1, 0, 2, 2), 1, presence_penalty=0.5), row((1, 0, 2, 2), 1, frequency_penalty=0.5)
    assert steered(once) == [[1.5, -2.0, 0.5, 0.5]]
    assert steered(twice) == [[1.5, -2.0, 0.0, 0.5]]


def test_repetition_counts_the_prompt_too_and_moves_both_signs_down() -> None:
    assert steered(row((0, 1), 1, repetition_penalty=2.0)) == [[1.0, -4.0, 1.0, 0.5]]
    assert steered(row((0, 1, 999), 1, repetition_penalty=2.0)) == [[1.0, -4.0, 1.0, 0.5]]  # the image token


def test_biases_and_barred_tokens() -> None:
    assert steered(row(logit_bias=((1, 5.0), (3, -0.5)))) == [[2.0, 3.0, 1.0, 0.0]]
    assert steered(row(banned_token_ids=frozenset({0}), logit_bias=((0, 100.0),))) == [[-torch.inf, -2.0, 1.0, 0.5]]


def test_a_grammar_has_the_last_word() -> None:
    assert steered(row(matcher=Allows(1, 3, 39), logit_bias=((0, 100.0),))) == [[-torch.inf, -2.0, -torch.inf, 0.5]]


def test_a_grammar_that_fails_costs_its_own_row_only() -> None:
    rows = [row(), row(matcher=Allows(39)), row(banned_token_ids=(2,))]
    logits, failed = process_logits(LOGITS.expand(3, -1), rows)
    assert list(failed) == [1]
    assert [logits[0].tolist(), logits[2].tolist()] == [steered(rows[0])[0], steered(rows[2])[0]]


def test_rows_are_steered_alone() -> None:
    rows = [row(), row((0,), 0, presence_penalty=2.0), row(banned_token_ids=(2,)), row(matcher=Allows(0))]
    assert steered(*rows) == [steered(one)[0] for one in rows]


@given(st.lists(st.floats(-50, 50), min_size=5, max_size=30), st.integers(0, 5))
def test_told_probabilities_are_those_of_the_logits(values: list[float], count: int) -> None:
    logits = torch.tensor(values)
    [first, last] = top_logprobs(logits.expand(2, -1), torch.tensor([0, len(values) - 1]), count).to_messages()
    expected = torch.tensor(values, dtype=torch.float64).log_softmax(-1)
    assert first.chosen == pytest.approx(float(expected[0]), abs=1e-4)
    assert last.chosen == pytest.approx(float(expected[-1]), abs=1e-4)
    assert len(first.top_tokens) == len(first.top) == count
    assert list(first.top) == sorted(first.top, reverse=True)
    assert sum(np.exp(first.top)) <= 1 + 1e-6
