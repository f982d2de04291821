"""The scheduler with its core: whatever happens around a request, its answer is the one it gives alone."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeRunner
from spyglass_server.engine.messages import (
    Drafted,
    EngineRequest,
    Event,
    FinishReason,
    ImageInput,
    ImageKey,
    RequestFailed,
    RequestScheduled,
    SamplingParams,
    TokenOutput,
)
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler

PAGE_SIZE = 4
IMAGE = 250

Answer = dict[tuple[int, int], list[int]]


@pytest.fixture(params=[False, True], ids=["one step at a time", "looking ahead"], autouse=True, scope="module")
def looks_ahead(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the runners of a test look ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRunner, "looks_ahead", request.param)
        yield request.param


def engine(
    num_pages: int = 64,
    max_tiles: int = 8,
    max_batch: int = 8,
    max_step_tokens: int = 32,
    max_chunk_tokens: int = 32,
    max_draft_rows: int = 0,
) -> tuple[EngineCore, FakeRunner]:
    runner = FakeRunner(PAGE_SIZE)
    limits = Limits(
        max_batch=max_batch,
        max_step_tokens=max_step_tokens,
        max_chunk_tokens=max_chunk_tokens,
        max_draft_rows=max_draft_rows,
    )
    scheduler = Scheduler(limits, PagePool(num_pages, PAGE_SIZE), ImageCache(max_tiles))
    return EngineCore(scheduler, runner), runner


def image(name: int, num_tiles: int = 1, tenant: str = "t") -> ImageInput:
    return ImageInput(key=ImageKey(tenant, bytes([name])), rows=1, columns=num_tiles, memory_name=f"block-{name}")


def request(request_id: int, length: int = 5, **fields: object) -> EngineRequest:
    tokens = tuple(random.Random(request_id).randrange(200) for _ in range(length))
    return replace(EngineRequest(id=request_id, tokens=tokens, max_tokens=6), **fields)  # type: ignore[arg-type]


def collect(core: EngineCore, answers: Answer) -> list[RequestFailed]:
    failed = []
    for event in core.step():
        if isinstance(event, TokenOutput):
            answers.setdefault((event.id, event.choice), []).append(event.token)
        elif isinstance(event, RequestFailed):
            failed.append(event)
    core.check()
    return failed


def run_to_end(core: EngineCore, max_steps: int = 5000) -> Answer:
    answers: Answer = {}
    for _ in range(max_steps):
        if not core.has_work:
            return answers
        assert not collect(core, answers)
    raise AssertionError("the engine does not come to an end")


def alone(wanted: EngineRequest) -> Answer:
    core, _ = engine()
    core.submit(wanted)
    return run_to_end(core)


def test_one_request_runs_to_its_length() -> None:
    (tokens,) = alone(request(1)).values()
    assert len(tokens) == 6


def test_a_stop_token_ends_a_choice_and_is_its_last_token() -> None:
    (tokens,) = alone(request(1)).values()
    (stopped,) = alone(request(1, stop_token_ids=frozenset({tokens[2]}))).values()
    assert stopped == tokens[:3]


def test_finish_reasons_are_told_with_the_last_token() -> None:
    core, _ = engine()
    core.submit(request(1, max_tokens=2))
    outputs = [event for _ in range(3) for event in core.step() if isinstance(event, TokenOutput)]
    assert [output.finish for output in outputs] == [None, FinishReason.LENGTH]


def test_choices_share_the_prompt_and_differ() -> None:
    core, runner = engine()
    core.submit(request(1, length=9, n=3, sampling=SamplingParams(seed=7)))
    answers = run_to_end(core)
    assert sorted(answers) == [(1, 0), (1, 1), (1, 2)]
    assert len({tuple(tokens) for tokens in answers.values()}) == 3
    assert len(runner.pages) < 3 * 3 + 3  # nine tokens of prompt stand in three pages, once


def test_a_prompt_longer_than_a_step_is_computed_in_pieces() -> None:
    long = request(1, length=30)
    core, _ = engine(max_step_tokens=4)
    core.submit(long)
    assert run_to_end(core) == alone(long)


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    core, _ = engine(max_step_tokens=4)
    answers: Answer = {}
    core.submit(request(1, length=3, max_tokens=40))
    for _ in range(2):
        collect(core, answers)
    core.submit(request(2, length=40))
    for _ in range(10):
        before = len(answers[1, 0])
        collect(core, answers)
        assert len(answers[1, 0]) == before + 1


def test_a_long_prompt_is_computed_in_small_pieces_while_answers_go_on() -> None:
    core, runner = engine(max_step_tokens=32, max_chunk_tokens=4)
    answers: Answer = {}

    def computed() -> int:
        before = runner.num_computed
        collect(core, answers)
        return runner.num_computed - before

    core.submit(request(1, length=30, max_tokens=3))
    assert computed() == 30, "nobody waits for it"
    core.submit(request(2, length=20))
    assert [computed() for _ in range(3)] == [1 + 4, 1 + 4, 12], "then the first has ended"


def test_images_and_prompts_take_turns_while_answers_go_on() -> None:
    core, runner = engine(max_chunk_tokens=4)
    runner.slices = 3
    answers: Answer = {}
    core.submit(request(1, max_tokens=40))
    collect(core, answers)
    core.submit(request(2, length=20, tenant="a"))
    core.submit(request(3, length=1, tenant="b", images=(image(1, tenant="b"),), image_positions=(0,)))
    work = []
    for _ in range(5):
        slices, computed = sum(runner.encoding.values()) + 3 * runner.num_encoded, runner.num_computed
        collect(core, answers)
        now = sum(runner.encoding.values()) + 3 * runner.num_encoded
        work.append((now - slices, runner.num_computed - computed - 1))
    assert work == [(1, 0), (0, 4), (1, 0), (0, 4), (1, 0)]


def test_a_token_with_much_context_counts_for_more() -> None:
    runner, answers = FakeRunner(PAGE_SIZE), Answer()
    core = EngineCore(
        Scheduler(
            Limits(max_batch=8, max_step_tokens=64, max_chunk_tokens=8, context_cost=0.1),
            PagePool(64, PAGE_SIZE),
            ImageCache(8),
        ),
        runner,
    )
    core.submit(request(1, max_tokens=40))
    collect(core, answers)
    core.submit(request(2, length=40))
    pieces = []
    for _ in range(4):
        before = runner.num_computed
        collect(core, answers)
        pieces.append(runner.num_computed - before - 1)
    assert pieces == [8, 4, 3, 3]


def order_of_beginning(core: EngineCore) -> list[int]:
    found = []
    while core.has_work:
        found += [event.id for event in core.step() if isinstance(event, RequestScheduled)]
        core.check()
    return found


def test_a_tenant_with_many_requests_does_not_hold_up_another() -> None:
    core, _ = engine(max_batch=1)
    for number in range(1, 7):
        core.submit(request(number, tenant="many"))
    core.submit(request(7, tenant="one"))
    core.submit(request(8, tenant="one", length=20))
    core.submit(request(9, tenant="one"))
    assert order_of_beginning(core) == [1, 7, 2, 8, 3, 4, 9, 5, 6], "8 is as long as two others"


def test_a_tenant_who_comes_back_has_saved_no_turns() -> None:
    core, _ = engine(max_batch=1)
    core.submit(request(1, tenant="early"))
    run_to_end(core)
    for number in range(2, 6):
        core.submit(request(number, tenant="busy"))
    for _ in range(16):
        core.step()
    for number in (6, 7):
        core.submit(request(number, tenant="early"))
    assert order_of_beginning(core) == [6, 5, 7]


def test_seats_that_are_free_at_once_go_to_all_tenants() -> None:
    core, _ = engine(max_batch=4)
    for number in range(1, 5):
        core.submit(request(number, tenant="many"))
    core.submit(request(5, tenant="one"))
    begun = [event.id for event in core.step() if isinstance(event, RequestScheduled)]
    assert begun == [1, 5, 2, 3], "what has begun counts before it is computed"


def test_a_short_prompt_is_computed_before_the_long_ones_of_another_tenant() -> None:
    core, _ = engine(num_pages=400, max_step_tokens=32, max_chunk_tokens=8)
    for number in range(1, 5):
        core.submit(request(number, length=200, tenant="many"))
    core.submit(request(5, length=8, tenant="one"))
    answers: Answer = {}
    for _ in range(4):
        collect(core, answers)
    assert list(answers) == [(5, 0)]


def test_a_tenant_with_one_request_at_a_time_does_not_lose_count() -> None:
    core, _ = engine(num_pages=400, max_batch=1)
    core.submit(request(1, length=300, tenant="serial"))
    for number in range(2, 12):
        core.submit(request(number, length=5, tenant="patient"))
    begun: list[int] = []
    while begun != [1, 2]:
        begun += [event.id for event in core.step() if isinstance(event, RequestScheduled)]
    core.submit(request(100, length=300, tenant="serial"))
    assert order_of_beginning(core) == [*range(3, 12), 100], "its 300 tokens count while the other has had fewer"


def test_who_waits_for_room_for_images_lets_others_pass() -> None:
    core, runner = engine(max_tiles=1)
    core.submit(request(1, images=(image(1),), image_positions=(0,), max_tokens=12))
    core.submit(request(2, images=(image(2),), image_positions=(0,)))
    core.submit(request(3))
    core.submit(request(4, images=(image(1),), image_positions=(0,)))
    core.submit(request(5, images=(image(3),), image_positions=(0,)))
    assert order_of_beginning(core) == [1, 3, 4, 2, 5]
    assert runner.num_encoded == 3


def test_the_state_that_was_needed_longest_ago_makes_room() -> None:
    core, runner = engine(max_tiles=2)
    core.submit(request(1, images=(image(1),), image_positions=(0,), max_tokens=20))
    core.step()
    core.submit(request(2, images=(image(2),), image_positions=(0,), max_tokens=1))
    run_to_end(core)
    core.submit(request(3, images=(image(3),), image_positions=(0,)))
    core.submit(request(4, images=(image(1),), image_positions=(0,)))
    run_to_end(core)
    assert runner.num_encoded == 3, "the first was needed until a moment ago"


def test_the_greater_priority_begins_first_among_ones_own() -> None:
    core, _ = engine(max_batch=1)
    for number, (tenant, priority) in enumerate([("a", 0), ("a", -1), ("a", 5), ("a", 5), ("b", 0)], start=1):
        core.submit(request(number, tenant=tenant, priority=priority))
    assert order_of_beginning(core) == [3, 5, 4, 1, 2]


def test_preempted_requests_finish_with_the_same_tokens() -> None:
    wanted = [request(i, length=6, max_tokens=20) for i in range(1, 9)]
    core, _ = engine(num_pages=10)  # one request needs seven
    for one in wanted:
        core.submit(one)
    answers = run_to_end(core)
    assert answers == {key: tokens for one in wanted for key, tokens in alone(one).items()}


def begun(core: EngineCore, answers: Answer, one: EngineRequest) -> int:
    """Runs a request to its end. Returns how much of its prompt did not have to be computed."""
    core.submit(one)
    events = core.step()
    (start,) = (event for event in events if isinstance(event, RequestScheduled))
    answers |= {(e.id, e.choice): [e.token] for e in events if isinstance(e, TokenOutput)}
    while core.has_work:
        assert not collect(core, answers)
    return start.cached_tokens


def test_a_second_turn_computes_what_is_new_only() -> None:
    core, runner = engine()
    answers: Answer = {}
    first = request(1, length=18, max_tokens=8)
    assert begun(core, answers, first) == 0
    before = runner.num_computed
    second = replace(request(2), tokens=(*first.tokens, *answers[1, 0], 7, 8))
    assert begun(core, answers, second) == 24  # 18 + 8 tokens; the last of them was never computed
    assert runner.num_computed - before == 28 - 24 + 5
    assert answers[2, 0] == alone(second)[2, 0]


def test_the_same_prompt_again_computes_its_last_page_only() -> None:
    core, _ = engine()
    answers: Answer = {}
    one = request(1, length=16)
    assert [begun(core, answers, replace(one, id=i)) for i in (1, 2, 3)] == [0, 12, 12]
    assert answers[1, 0] == answers[2, 0] == answers[3, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "another"},
        {"images": (image(2),)},
        {"image_positions": (3,)},
        {"images": (), "image_positions": ()},
    ],
)
def test_other_tenants_and_images_are_other_beginnings(other: dict[str, Any]) -> None:
    core, _ = engine()
    answers: Answer = {}
    one = request(1, length=16, images=(image(1),), image_positions=(2,))
    assert begun(core, answers, one) == 0
    two = replace(one, id=2, **other)
    assert begun(core, answers, two) == 0
    assert answers[2, 0] == alone(two)[2, 0]


def test_a_request_that_failed_leaves_nothing_to_others() -> None:
    core, runner = engine(max_step_tokens=8)
    runner.bad_tokens.add(249)
    bad = replace(request(1, length=16), tokens=(*range(14), 249, 0))
    core.submit(bad)
    failed: list[RequestFailed] = []
    while core.has_work:
        failed += collect(core, {})
    assert [event.id for event in failed] == [1]
    assert begun(core, {}, replace(bad, id=2, tokens=tuple(range(16)))) == 0


def test_an_image_in_a_later_page_leaves_the_beginning_shared() -> None:
    core, _ = engine()
    answers: Answer = {}
    one = request(1, length=16, images=(image(1),), image_positions=(9,))
    assert begun(core, answers, one) == 0
    assert begun(core, answers, replace(one, id=2, images=(image(2),))) == 8


def test_beginnings_are_forgotten_when_their_pages_are_needed() -> None:
    core, _ = engine(num_pages=8)
    answers: Answer = {}
    first, other = request(1, length=16), request(2, length=20)
    assert [begun(core, answers, one) for one in (first, other, replace(first, id=3))] == [0, 0, 4]
    assert answers[3, 0] == answers[1, 0]


def test_an_image_is_encoded_once_for_all_who_look_at_it() -> None:
    core, runner = engine()
    for i in range(1, 5):
        core.submit(request(i, images=(image(1),), image_positions=(0,)))
    run_to_end(core)
    assert runner.num_encoded == 1
    assert not runner.pixels, "pixels are dropped when nobody needs them"


def test_tenants_never_share_image_states() -> None:
    core, runner = engine()
    for i, tenant in enumerate("ab"):
        core.submit(request(i, images=(image(1, tenant=tenant),), image_positions=(0,)))
    run_to_end(core)
    assert runner.num_encoded == 2


def test_images_beyond_the_budget_wait_and_old_states_make_room() -> None:
    core, runner = engine(max_tiles=4)
    for i in range(1, 6):
        core.submit(request(i, images=(image(i, num_tiles=3),), image_positions=(1,)))
    assert len(run_to_end(core)) == 5
    assert len({key for key, _ in runner.states.values()}) == 1


def test_tiles_of_an_image_lie_side_by_side_where_they_can() -> None:
    cache = ImageCache(6)
    keys = [ImageKey("t", bytes([i])) for i in range(6)]
    assert cache.hold([(key, 1) for key in keys[:4]])
    cache.release([keys[0], keys[2]])
    assert cache.hold([(keys[4], 2)])
    assert cache.tiles(keys[4]) == (4, 5)
    assert cache.hold([(keys[5], 2)])
    assert cache.tiles(keys[5]) == (0, 2)


def test_a_bad_row_fails_alone() -> None:
    core, runner = engine()
    good = [request(i) for i in range(1, 6)]
    bad = replace(request(6), tokens=(249, 249))
    runner.bad_tokens.add(249)
    for one in [*good[:3], bad, *good[3:]]:
        core.submit(one)
    answers: Answer = {}
    failed: list[RequestFailed] = []
    while core.has_work:
        failed += collect(core, answers)
    assert [event.id for event in failed] == [6]
    assert answers == {key: tokens for one in good for key, tokens in alone(one).items()}


def test_an_image_that_cannot_be_encoded_fails_its_requests_only() -> None:
    core, runner = engine()
    core.submit(request(1))
    core.submit(request(2, images=(image(1),), image_positions=(0,)))
    runner.pixels.clear()  # as if its memory had gone
    answers: Answer = {}
    failed: list[RequestFailed] = []
    runner.drop_image = lambda key: None  # type: ignore[method-assign]
    while core.has_work:
        failed += collect(core, answers)
    assert [event.id for event in failed] == [2]
    assert answers == alone(request(1))


def test_images_that_cannot_be_taken_fail_the_request_at_once() -> None:
    core, runner = engine()
    runner.pixels.add(image(1).key)  # taking it again is refused
    (event,) = core.submit(request(1, images=(image(1),), image_positions=(0,)))
    assert isinstance(event, RequestFailed)
    assert not core.has_work


@pytest.mark.parametrize("index", [None, 0, 1])
def test_cancelling_frees_everything(index: int | None) -> None:
    core, _ = engine()
    core.submit(request(1, length=9, n=2, images=(image(1),), image_positions=(0,)))
    answers: Answer = {}
    for _ in range(3):
        collect(core, answers)
    core.cancel(1, index)
    rest = run_to_end(core)
    assert set(rest) == (set() if index is None else {(1, 1 - index)})


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.sampled_from(["submit", "submit", "step", "step", "step", "cancel", "cancel choice"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 2**16)), min_size=5, max_size=60))


@settings(max_examples=150)
@given(operations(), st.integers(9, 20), st.integers(2, 9), st.integers(1, 9), st.sampled_from([0, 5, 16]))
def test_any_mix_gives_the_answers_of_runs_alone(
    steps: list[tuple[str, int]], num_pages: int, max_step_tokens: int, max_chunk_tokens: int, max_draft_rows: int
) -> None:
    """With guesses too, whether they are right, wrong, or right up to some token."""
    core, _ = engine(
        num_pages,
        4,
        max_batch=5,
        max_step_tokens=max_step_tokens,
        max_chunk_tokens=max_chunk_tokens,
        max_draft_rows=max_draft_rows,
    )
    wanted: dict[int, EngineRequest] = {}
    cancelled: set[tuple[int, int]] = set()
    answers: Answer = {}
    for kind, number in steps:
        choose = random.Random(number)
        if kind == "submit":
            one = _random_request(len(wanted) + 1, choose, list(wanted.values()), answers)
            wanted[one.id] = one
            core.submit(replace(one, prediction=_prediction(one, choose)) if max_draft_rows else one)
        elif kind == "step":
            assert not collect(core, answers)
        elif wanted:
            cancelled |= _cancel_one(core, list(wanted.values()), kind == "cancel", choose)
    for key, tokens in run_to_end(core).items():
        answers.setdefault(key, []).extend(tokens)
    for one in wanted.values():
        for key, tokens in alone(one).items():
            got = answers.get(key, [])
            assert got == (tokens[: len(got)] if key in cancelled else tokens)


def test_a_long_life_keeps_its_accounts() -> None:
    """One engine and many operations; SPYGLASS_OPERATIONS=1000000 makes it a long test."""
    choose = random.Random(1)
    scheduler = Scheduler(
        Limits(max_batch=6, max_step_tokens=12, max_chunk_tokens=5, max_draft_rows=12),
        PagePool(40, PAGE_SIZE),
        ImageCache(4),
    )
    core = EngineCore(scheduler, FakeRunner(PAGE_SIZE))
    recent: dict[int, EngineRequest] = {}
    cancelled: set[tuple[int, int]] = set()
    answers: Answer = {}
    num_checked = 0
    for number in range(int(os.environ.get("SPYGLASS_OPERATIONS", "20000"))):
        kind = choose.choices(("submit", "step", "cancel", "cancel choice"), (8, 40, 1, 1))[0]
        if kind == "submit" and len(recent) < 12:
            one = _random_request(number + 1, choose, list(recent.values()), answers)
            recent[one.id] = one
            core.submit(replace(one, prediction=_prediction(one, choose)))
        elif kind == "step":
            if core.has_work:
                assert not collect(core, answers)
        elif recent:
            cancelled |= _cancel_one(core, list(recent.values()), kind == "cancel", choose)
            core.check()
        ended = [one for one in recent.values() if not scheduler.is_alive(one.id)]
        for one in ended[: max(0, len(ended) - 4)]:  # the last ones may be continued
            del recent[one.id]
            expected = alone(one)
            for key in expected:
                got = answers.pop(key, [])
                assert got == (expected[key][: len(got)] if key in cancelled else expected[key])
                cancelled.discard(key)
            num_checked += 1
    assert num_checked > 1000


def _prediction(one: EngineRequest, choose: random.Random) -> tuple[int, ...]:
    """What the request's first answer will be, mostly with a wrong token somewhere."""
    tokens = alone(one)[one.id, 0]
    if choose.random() < 0.6:
        tokens = list(tokens)
        tokens[choose.randrange(len(tokens))] = choose.randrange(250)
    return tuple(tokens)


def test_a_right_prediction_takes_few_steps_and_a_wrong_one_changes_nothing(looks_ahead: bool) -> None:
    one = request(1, max_tokens=40)
    expected = alone(one)
    steps = {}
    for name, prediction in (
        ("none", ()),
        ("right", expected[1, 0]),
        ("with a wrong word", (*expected[1, 0][:20], 3, *expected[1, 0][21:])),
        ("wrong", range(100, 140)),
    ):
        core, _ = engine(max_draft_rows=16)
        core.submit(replace(one, prediction=tuple(prediction)))
        answers: Answer = {}
        events: list[Event] = []
        steps[name] = 0
        while core.has_work:
            events += core.step()
            core.check()
            steps[name] += 1
        for event in events:
            if isinstance(event, TokenOutput):
                answers.setdefault((event.id, event.choice), []).append(event.token)
        assert answers == expected
        guessed = [event for event in events if isinstance(event, Drafted)]
        assert sum(event.num_guessed for event in guessed) >= sum(event.num_right for event in guessed)
    if not looks_ahead:  # a step that is started before the last token is known guesses nothing
        assert steps["right"] < steps["with a wrong word"] < 15 < 40 <= steps["wrong"] <= steps["none"]


class _Faulty:
    """A matcher whose library fails wherever it is asked what comes next."""

    is_ready = True

    def allowed(self) -> bytes:
        return b""

    def advance(self, token: int) -> None:
        pass

    def forced(self) -> tuple[int, ...]:
        raise RuntimeError("a fault of the library")

    def fork(self) -> "_Faulty":
        raise RuntimeError("a fault of the library")


def test_a_grammar_that_cannot_guess_hurts_nobody() -> None:
    core, _ = engine(max_draft_rows=16)
    held, free = request(1, max_tokens=12), request(2, max_tokens=12)
    for one, matcher in ((held, _Faulty()), (free, None)):
        core._scheduler.submit(replace(one, prediction=tuple(alone(one)[one.id, 0])), matcher)
        core._requests[one.id] = one
    assert run_to_end(core) == alone(held) | alone(free)


def test_nothing_is_guessed_where_many_answers_go_on() -> None:
    core, _ = engine(max_batch=8, max_draft_rows=8)
    wanted = [request(i, max_tokens=12) for i in range(1, 9)]
    for one in wanted:
        core.submit(replace(one, prediction=tuple(alone(one)[one.id, 0])))
    guesses = [event for _ in range(10) for event in core.step() if isinstance(event, Drafted)]
    assert not guesses


def _cancel_one(
    core: EngineCore, requests: list[EngineRequest], is_whole: bool, choose: random.Random
) -> set[tuple[int, int]]:
    """Cancels one of the requests, or one choice of it. Returns what may now be cut short."""
    victim = choose.choice(requests)
    index = None if is_whole else choose.randrange(victim.n)
    core.cancel(victim.id, index)
    return {(victim.id, i) for i in range(victim.n) if index in (None, i)}


def _random_request(
    request_id: int, choose: random.Random, earlier: list[EngineRequest], answers: Answer
) -> EngineRequest:
    length = choose.randrange(1, 16)
    positions = sorted(choose.sample(range(length), choose.choice([0, 0, min(1, length), min(2, length)])))
    fresh = request(request_id, length=length)
    if earlier and choose.random() < 0.5:  # a conversation goes on, or is asked again, perhaps with other images
        before = choose.choice(earlier)
        known = [*before.tokens, *answers.get((before.id, 0), [])]
        length = min(len(known), 20)  # it still fits the smallest cache
        fresh = replace(fresh, tokens=(*known[:length], *fresh.tokens[:3]), tenant=choose.choice("ab"))
        positions = [position for position in before.image_positions if position < length]
    return replace(
        fresh,
        max_tokens=choose.randrange(1, 14),
        n=choose.choice([1, 1, 2, 3]),
        images=tuple(image(name, 1 + name % 2) for name in (choose.randrange(5) for _ in positions)),
        image_positions=tuple(positions),
        sampling=SamplingParams(seed=choose.randrange(9)),
    )


def test_the_next_step_is_started_before_the_outputs_of_one_are_waited_for(
    looks_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the runner looks ahead, and unless an answer's next token depends on the last one by more than its text."""
    if not looks_ahead:
        pytest.skip("one step at a time")
    log: list[str] = []
    start = FakeRunner.start

    def logged(runner: FakeRunner, rows: Sequence[Row]) -> Pending:
        log.append("start")
        pending = start(runner, rows)

        def outputs() -> list[RowOutput]:
            log.append("wait")
            return pending()

        return outputs

    monkeypatch.setattr(FakeRunner, "start", logged)
    plain, penalized = request(1), request(2, sampling=SamplingParams(frequency_penalty=1.0))
    for one, begins_with in ((plain, ["start", "start", "wait"]), (penalized, ["start", "wait", "start"])):
        expected = alone(one)
        log.clear()
        core, _ = engine()
        core.submit(one)
        assert run_to_end(core) == expected
        assert log[:3] == begins_with
        assert log.count("start") == log.count("wait")


def test_what_goes_on_from_a_failed_step_is_computed_again(looks_ahead: bool) -> None:
    """One request fails in the middle of its answer; the others' answers do not change."""
    good = [request(number, length=3 + number, max_tokens=12) for number in (1, 2, 3)]
    expected = {key: tokens for one in good for key, tokens in alone(one).items()}
    (bad_answer,) = alone(request(4)).values()
    tried = 0
    for bad_token in bad_answer[:4]:
        if any(bad_token in tokens or bad_token in one.tokens for one in good for tokens in expected.values()):
            continue
        tried += 1
        core, runner = engine()
        runner.bad_tokens.add(bad_token)
        for one in (*good, request(4)):
            core.submit(one)
        answers: Answer = {}
        failed = []
        while core.has_work:
            failed += collect(core, answers)
        assert [event.id for event in failed] == [4]
        assert {key: tokens for key, tokens in answers.items() if key[0] != 4} == expected
        assert answers.get((4, 0), []) == bad_answer[: bad_answer.index(bad_token) + 1]
    assert tried > 1
