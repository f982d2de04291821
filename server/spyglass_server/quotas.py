"""What each key may still use of its limits.

Per-minute limits refill evenly, and are full after a minute without use. A generation reserves what it may use when it
begins: its tokens, with an assumed length of answers if the caller states no maximum, and the most that it can cost.
When it ends, for whatever reason, it is charged for its actual use, and the rest is released.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from spyglass_common.keys import KeyLimits
from spyglass_common.rate_limits import RateLimit, RateLimits
from spyglass_server.auth import ApiKey
from spyglass_server.errors import BudgetSpent, RateLimited, Unavailable

_MINUTE_S = 60.0
_ASSUMED_TOKENS = 1024
"""Tokens reserved for each choice if the caller has not stated a maximum."""
_BUSY_RETRY_S = 1.0
_KNOWN_S = 10.0
"""How long the ledger's sums are used before they are read again: another server may write to it."""

Spent = Callable[[str, float], Awaitable[float]]
"""Returns what a key has spent, in US dollars, on generations begun at or after a time; raises Unavailable."""


class Bucket:
    """A per-minute limit."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until `amount` is available; more than the whole limit counts as the whole limit."""
        if not self.per_minute:
            return _MINUTE_S
        missing = min(amount, self.per_minute) - self._fill(now_s)
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Takes an amount, or puts it back if negative; the level may drop below zero."""
        self._level = min(self._fill(now_s) - amount, self.per_minute)

    def state(self, now_s: float) -> RateLimit:
        """The limit, and what is left."""
        level = self._fill(now_s)
        reset_s = (self.per_minute - level) * _MINUTE_S / (self.per_minute or 1)
        return RateLimit(self.per_minute, max(0, int(level)), reset_s)

    def _fill(self, now_s: float) -> float:
        self._level = min(self._level + (now_s - self._at_s) * self.per_minute / _MINUTE_S, self.per_minute)
        self._at_s = now_s
        return self._level


@dataclass(slots=True, kw_only=True)
class _Period:
    """A day or a month: what was spent in it according to the ledger, and what this server has charged since.

    `charged_then` is the value of `charged` when the ledger was queried.
    """

    begins_s: float
    ends_s: float
    told: float | None = None
    charged: float = 0.0
    charged_then: float = 0.0

    @property
    def spent(self) -> float:
        return (self.told or 0.0) + self.charged - self.charged_then


@dataclass(slots=True, kw_only=True)
class _Account:
    """A key's usage. A bucket is None without a limit."""

    limits: KeyLimits
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0
    reserved_usd: float = 0.0
    periods: dict[str, _Period] = field(default_factory=dict)
    asked_s: float = float("-inf")
    """When the ledger was last queried."""

    @property
    def budgets(self) -> dict[str, float]:
        """How much the key may spend per day and month, where limited."""
        amounts = {"day": self.limits.usd_per_day, "month": self.limits.usd_per_month}
        return {name: amount for name, amount in amounts.items() if amount is not None}


class Hold:
    """One generation's share of its key's limits. `end` must be called once, whatever happens."""

    def __init__(self, account: _Account | None, begun_s: float) -> None:
        self._account, self._begun_s = account, begun_s
        self._tokens, self._usd = 0, 0.0

    def reserve(self, *, prompt_tokens: int, stated_tokens: int | None, n: int, most_usd: float) -> None:
        """Reserves what it may use: its prompt, `stated_tokens` for each of `n` choices, and `most_usd` dollars.

        Raises:
            RateLimited, BudgetSpent: too little is left.
        """
        if (account := self._account) is None:
            return
        _check_budget(account, most_usd)
        now_s = time.monotonic()
        if account.tokens:
            tokens = min(prompt_tokens + n * (stated_tokens or _ASSUMED_TOKENS), account.tokens.per_minute)
            if wait_s := account.tokens.wait_s(tokens, now_s):
                raise RateLimited(
                    f"This key has a limit of {account.tokens.per_minute} tokens a minute, and this request may use "
                    f"{tokens}. Try again in {wait_s:.1f} s, or with a smaller max_tokens.",
                    retry_after_s=wait_s,
                    rate_limits=_state(account),
                )
            account.tokens.take(tokens, now_s)
            self._tokens = tokens
        self._usd = most_usd
        account.reserved_usd += most_usd

    @property
    def rate_limits(self) -> RateLimits | None:
        """What is left now; None without limits."""
        return None if self._account is None else _state(self._account)

    def end(self, tokens: int, usd: float) -> None:
        """Charges for actual use, which is zero before the generation is metered."""
        if (account := self._account) is None:
            return
        self._account = None
        account.running -= 1
        if account.tokens:
            account.tokens.take(tokens - self._tokens, time.monotonic())
        account.reserved_usd = account.reserved_usd - self._usd if account.running else 0.0
        for period in account.periods.values():
            if period.begins_s <= self._begun_s < period.ends_s:
                period.charged += usd


class Quotas:
    """The limits of all keys, as one server counts them."""

    def __init__(self, spent: Spent) -> None:
        self._spent = spent
        self._accounts: dict[str, _Account] = {}

    async def hold(self, key: ApiKey) -> Hold:
        """Begins a generation, or an operation that takes as much work.

        Raises:
            RateLimited, BudgetSpent: the key has reached a limit.
            Unavailable: what it has spent cannot be determined.
        """
        if key.limits == KeyLimits():
            return Hold(None, 0.0)
        account = self._account(key)
        await self._learn_spending(key.id, account)
        _check_budget(account, 0.0)
        limit = account.limits.concurrent_generations
        if limit is not None and account.running >= limit:
            raise RateLimited(
                f"This key has a limit of {limit} generations at a time.",
                retry_after_s=_BUSY_RETRY_S,
                rate_limits=_state(account),
            )
        now_s = time.monotonic()
        if account.requests:
            if wait_s := account.requests.wait_s(1, now_s):
                raise RateLimited(
                    f"This key has a limit of {account.requests.per_minute} requests a minute. "
                    f"Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                    rate_limits=_state(account),
                )
            account.requests.take(1, now_s)
        account.running += 1
        return Hold(account, time.time())

    def _account(self, key: ApiKey) -> _Account:
        """Returns the key's account, with its current limits."""
        account = self._accounts.setdefault(key.id, _Account(limits=KeyLimits()))
        if account.limits != key.limits:
            account.requests = _resized(account.requests, key.limits.requests_per_minute)
            account.tokens = _resized(account.tokens, key.limits.tokens_per_minute)
            account.limits = key.limits
        return account

    async def _learn_spending(self, key_id: str, account: _Account) -> None:
        """Queries the ledger for the spending of the current day and month, where limited and not known."""
        now = datetime.now(UTC)
        is_fresh = time.monotonic() - account.asked_s < _KNOWN_S
        for name in account.budgets:
            begins_s, ends_s = _bounds(name, now)
            period = account.periods.get(name)
            if period is None or period.begins_s != begins_s:
                period = account.periods[name] = _Period(begins_s=begins_s, ends_s=ends_s)
            if period.told is not None and is_fresh:
                continue
            charged = period.charged  # included in the answer; later charges are not
            try:
                period.told, period.charged_then = await self._spent(key_id, begins_s), charged
            except Unavailable:
                if period.told is None:
                    raise
        if not is_fresh:
            account.asked_s = time.monotonic()


def _check_budget(account: _Account, usd: float) -> None:
    budgets = account.budgets
    for name, period in account.periods.items():
        if (limit := budgets.get(name)) is None:
            continue
        spent = period.spent
        if spent + account.reserved_usd + usd > limit or spent >= limit:
            runs = " with what its running generations may cost" if account.reserved_usd else ""
            raise BudgetSpent(
                f"You exceeded your current quota: this key may spend ${limit:g} a {name} and has spent ${spent:.6f}"
                f"{runs}; this request may cost ${usd:.6f}.",
                retry_after_s=_BUSY_RETRY_S if account.reserved_usd else max(1.0, period.ends_s - time.time()),
            )


def _state(account: _Account) -> RateLimits:
    now_s = time.monotonic()
    return RateLimits(
        account.requests.state(now_s) if account.requests else None,
        account.tokens.state(now_s) if account.tokens else None,
    )


def _resized(bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
    """Returns a bucket of another size, with as much missing as before."""
    if per_minute is None or (bucket and bucket.per_minute == per_minute):
        return None if per_minute is None else bucket
    now_s = time.monotonic()
    resized = Bucket(per_minute, now_s)
    if bucket:
        state = bucket.state(now_s)
        resized.take(state.limit - state.remaining, now_s)
    return resized


def _bounds(name: str, now: datetime) -> tuple[float, float]:
    """Returns when the current day or month begins and ends, in seconds since 1970."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "day":
        return day.timestamp(), (day + timedelta(days=1)).timestamp()
    month = day.replace(day=1)
    return month.timestamp(), (month + timedelta(days=32)).replace(day=1).timestamp()
