"""The waiting requests, in a fair order across tenants.

Preempted requests come first, then those of the tenant with the fewest tokens served, counting tokens still to be
computed for its running requests; within a tenant the greatest priority, and among equals the oldest. A returning
tenant's counter is raised to the minimum of the active tenants, never lowered.

Source: the virtual token counters of "Fairness in Serving Large Language Models" (Sheng et al., 2024).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of items, ordered by `tenant_of` and `priority_of`."""

    def __init__(self, tenant_of: Callable[[T], str], priority_of: Callable[[T], int]) -> None:
        self._tenant_of, self._priority_of = tenant_of, priority_of
        self._returned: deque[T] = deque()
        self._queues: dict[str, list[T]] = {}
        self._served: dict[str, int] = {}
        """Tokens served to each tenant that has requests waiting or running, or was served more than those."""

    def __iter__(self) -> Iterator[T]:
        yield from self._returned
        for queue in self._queues.values():
            yield from queue

    def __bool__(self) -> bool:
        return bool(self._returned or self._queues)

    def add(self, item: T) -> None:
        """Queues a new item behind its tenant's items of the same or greater priority."""
        tenant, priority = self._tenant_of(item), self._priority_of(item)
        queue = self._queues.setdefault(tenant, [])
        place = next((i for i, other in enumerate(queue) if self._priority_of(other) < priority), len(queue))
        queue.insert(place, item)
        self._served.setdefault(tenant, min(self._served.values(), default=0))

    def put_back(self, item: T) -> None:
        """Puts a preempted item at the front of the queue."""
        self._returned.appendleft(item)

    def in_order(self, pending: Mapping[str, int]) -> Iterator[T]:
        """Yields all items, the next one first. `pending`: tokens still to be computed for each tenant."""
        yield from self._returned
        for tenant in sorted(self._queues, key=lambda tenant: self._served[tenant] + pending.get(tenant, 0)):
            yield from self._queues[tenant]

    def served(self, tenant: str) -> int:
        """Returns the tokens computed for a tenant that has requests waiting or running."""
        return self._served[tenant]

    def remove(self, item: T) -> None:
        """Removes an item."""
        if item in self._returned:
            self._returned.remove(item)
            return
        tenant = self._tenant_of(item)
        self._queues[tenant].remove(item)
        if not self._queues[tenant]:
            del self._queues[tenant]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Records tokens computed for a tenant."""
        self._served[tenant] += num_tokens

    def retain(self, present: Iterable[str]) -> None:
        """Forgets tenants without waiting or running requests, unless they were served more than a present one."""
        here = set(present)
        least = min((self._served[tenant] for tenant in here), default=None)
        self._served = {
            tenant: served
            for tenant, served in self._served.items()
            if tenant in here or (least is not None and served > least)
        }
