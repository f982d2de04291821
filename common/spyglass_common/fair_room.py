"""Room for a number of bytes, tokens or places, with a share reserved for each tenant."""

from collections import Counter

_OWN_SHARE = 1 / 16
"""Each tenant's own fraction of the size; own shares come on top of the size, up to as much again."""


class FairRoom:
    """An amount of something that tenants hold parts of."""

    def __init__(self, size: int) -> None:
        self.size, self._own = size, max(1, int(size * _OWN_SHARE))
        self._taken = 0
        self._held: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How much all tenants hold together."""
        return self._taken

    def take(self, tenant: str, amount: int) -> bool:
        """Takes `amount` if available, or any amount if nothing is taken yet; negative amounts are given back."""
        total = self._taken + amount
        has_own = self._held[tenant] + amount <= self._own and total <= 2 * self.size
        if amount > 0 and self._taken and total > self.size and not has_own:
            return False
        self._taken = total
        self._held[tenant] += amount
        if not self._held[tenant]:
            del self._held[tenant]
        return True

    def missing(self, amount: int) -> int:
        """How much must be given back before `amount` is available to every tenant."""
        return self._taken + amount - self.size
