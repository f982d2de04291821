"""What keys may use: by the minute, at a time, and in money."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyglass_common.keys import KeyLimits
from spyglass_server import quotas
from spyglass_server.auth import ApiKey, Scope
from spyglass_server.errors import BudgetSpent, RateLimited, Unavailable
from spyglass_server.quotas import Bucket, Hold, Quotas


def key(**limits: float) -> ApiKey:
    return ApiKey(
        id="k", digest=b"", hint="", name="", tenant="t", scopes=frozenset({Scope.GENERATE}),
        limits=KeyLimits(**limits),  # type: ignore[arg-type]
    )  # fmt: skip


class Money:
    """A ledger that knows only sums."""

    def __init__(self, spent: float = 0.0) -> None:
        self.spent, self.is_there, self.questions = spent, True, 0

    async def __call__(self, key_id: str, since_s: float) -> float:
        self.questions += 1
        spent = self.spent  # what comes after the question is not in the answer
        await asyncio.sleep(0)
        if not self.is_there:
            raise Unavailable("away")
        return spent


def reserve(hold: Hold, *, prompt: int = 10, stated: int | None = 10, usd: float = 0.0) -> None:
    hold.reserve(prompt_tokens=prompt, stated_tokens=stated, n=1, most_usd=usd)


class Clock:
    def __init__(self, change: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        change.setattr("spyglass_server.quotas.time.monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_requests_of_a_minute(clock: Clock) -> None:
    limits, limited = Quotas(Money()), key(requests_per_minute=2)
    for remaining in (1, 0):
        hold = await limits.hold(limited)
        assert hold.rate_limits is not None
        assert hold.rate_limits.requests is not None
        assert (hold.rate_limits.requests.limit, hold.rate_limits.requests.remaining) == (2, remaining)
        hold.end(0, 0.0)
    with pytest.raises(RateLimited) as refusal:
        await limits.hold(limited)
    assert refusal.value.retry_after_s == pytest.approx(30)
    clock.now_s += 30
    (await limits.hold(limited)).end(0, 0.0)
    with pytest.raises(RateLimited):
        await limits.hold(limited)
    with pytest.raises(RateLimited):
        await limits.hold(replace(key(requests_per_minute=0), id="never"))


async def test_tokens_are_reserved_and_what_is_not_used_comes_back(clock: Clock) -> None:
    limits, limited = Quotas(Money()), key(tokens_per_minute=100)
    first = await limits.hold(limited)
    reserve(first, prompt=20, stated=60)
    second = await limits.hold(limited)
    with pytest.raises(RateLimited) as refusal:
        reserve(second, prompt=20, stated=10)
    assert refusal.value.retry_after_s == pytest.approx(6)  # 10 of 100 are missing
    first.end(30, 0.0)
    reserve(second, prompt=20, stated=10)
    second.end(0, 0.0)  # it was refused later, and has used nothing
    clock.now_s += 60
    third = await limits.hold(limited)
    reserve(third, prompt=5000, stated=None)  # the largest that can ever begin
    third.end(5000, 0.0)
    fourth = await limits.hold(limited)
    with pytest.raises(RateLimited):
        reserve(fourth)
    fourth.end(0, 0.0)


async def test_generations_at_a_time(clock: Clock) -> None:
    limits, limited = Quotas(Money()), key(concurrent_generations=1)
    hold = await limits.hold(limited)
    with pytest.raises(RateLimited):
        await limits.hold(limited)
    hold.end(0, 0.0)
    hold.end(0, 0.0)  # once more changes nothing
    again = await limits.hold(limited)
    with pytest.raises(RateLimited):
        await limits.hold(limited)
    again.end(0, 0.0)


async def test_money_is_never_overspent(clock: Clock) -> None:
    money = Money(spent=0.5)
    limits, limited = Quotas(money), key(usd_per_day=1.0)
    first, second = await asyncio.gather(limits.hold(limited), limits.hold(limited))
    reserve(first, usd=0.4)
    with pytest.raises(BudgetSpent):
        reserve(second, usd=0.2)
    first.end(0, 0.1)
    reserve(second, usd=0.4)
    second.end(0, 0.4)
    with pytest.raises(BudgetSpent) as refusal:
        await limits.hold(limited)
    assert refusal.value.retry_after_s is not None
    assert 1 <= refusal.value.retry_after_s <= 86400
    money.spent, clock.now_s = 1.0, clock.now_s + 60  # the ledger knows it now too: it counts once
    raised = key(usd_per_day=1.5)
    third = await limits.hold(raised)
    reserve(third, usd=0.5)
    third.end(0, 0.0)


async def test_a_ledger_that_is_away_is_needed_once(clock: Clock) -> None:
    money = Money()
    limits, limited = Quotas(money), key(usd_per_month=1.0)
    money.is_there = False
    with pytest.raises(Unavailable):
        await limits.hold(limited)
    money.is_there = True
    (await limits.hold(limited)).end(0, 1.0)
    money.is_there, clock.now_s = False, clock.now_s + 60
    with pytest.raises(BudgetSpent):  # it knows by itself what it has charged
        await limits.hold(limited)


@given(st.lists(st.tuples(st.sampled_from(["begin", "end"]), st.floats(0, 0.5)), max_size=40))
def test_what_is_spent_stays_below_the_limit_whatever_the_order(steps: list[tuple[str, float]]) -> None:
    async def run() -> None:
        money = Money()
        limits, running, spent = Quotas(money), list[tuple[Hold, float]](), 0.0
        for what, usd in steps:
            if what == "begin":
                try:
                    hold = await limits.hold(key(usd_per_day=1.0))
                except BudgetSpent:
                    continue
                try:
                    reserve(hold, usd=usd)
                    running.append((hold, usd))
                except BudgetSpent:
                    hold.end(0, 0.0)
            elif running:
                hold, most = running.pop()
                hold.end(0, most)
                spent += most
            assert spent + sum(most for _, most in running) <= 1.0 + 1e-9

    asyncio.run(run())


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 200)), max_size=30))
def test_a_bucket_gives_at_most_twice_its_size_in_a_minute(size: int, asks: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(size, 0.0), 0.0, list[tuple[float, float]]()
    for pause, amount in asks:
        now += pause
        if not bucket.wait_s(amount, now):
            amount = min(amount, size)
            bucket.take(amount, now)
            taken.append((now, amount))
        assert sum(amount for at, amount in taken if at > now - 60) <= 2 * size + 1e-6


def test_periods_are_days_and_months() -> None:
    noon = datetime(2026, 12, 31, 12, tzinfo=UTC)
    assert quotas._bounds("day", noon) == (
        datetime(2026, 12, 31, tzinfo=UTC).timestamp(),
        datetime(2027, 1, 1, tzinfo=UTC).timestamp(),
    )
    assert quotas._bounds("month", noon) == (
        datetime(2026, 12, 1, tzinfo=UTC).timestamp(),
        datetime(2027, 1, 1, tzinfo=UTC).timestamp(),
    )
