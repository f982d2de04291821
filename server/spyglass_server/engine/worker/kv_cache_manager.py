"""The pages of running sequences: allocation, prefix caching, copy on write, preemption.

`PagePool` counts pages; this module decides which sequence gets them.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from spyglass_server.engine.worker.block_hashes import block_hashes
from spyglass_server.engine.worker.page_pool import OutOfPages, PagePool
from spyglass_server.engine.worker.sequence import Sequence


class KVCacheManager:
    """Gives sequences the pages of their keys and values, shared where sequences begin alike, and frees them."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool

    @property
    def usage(self) -> float:
        """The part of all pages that sequences hold."""
        return 1 - self._pool.num_free / self._pool.num_pages

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of so many tokens fits in all pages."""
        return self._pool.num_needed(num_tokens) <= self._pool.num_pages

    def cached_prefix(self, sequence: Sequence) -> list[int]:
        """Pages with the sequence's beginning. Its last token is always computed: the next one comes from it."""
        if sequence.request.prompt_logprobs:
            return []  # pages hold no probabilities
        return self._pool.lookup(self._hashes(sequence)[: (len(sequence.tokens) - 1) // self._pool.page_size])

    def has_room(self, sequence: Sequence, prefix: Seq[int]) -> bool:
        """Whether a sequence can begin now, with a cached prefix."""
        return self._num_missing(sequence, prefix) <= self._pool.num_free - self._pool.num_idle(prefix)

    def begin(self, sequence: Sequence, prefix: Seq[int]) -> None:
        """Gives a sequence that `has_room` its pages: the cached prefix, and new ones for its other tokens."""
        self._pool.share(prefix)
        sequence.pages = [*prefix, *self._pool.allocate(self._num_missing(sequence, prefix))]
        sequence.num_computed = len(prefix) * self._pool.page_size

    def has_spare_room(self, sequence: Sequence, end: int, num_kept: int) -> bool:
        """Whether positions up to end - 1 fit, and so many pages are still free then."""
        return self._pool.num_needed(end) - len(sequence.pages) + num_kept <= self._pool.num_free

    def reserve(self, sequence: Sequence, end: int) -> dict[int, int]:
        """Gives the sequence pages of its own for positions num_computed … end - 1.

        Returns which pages must be copied for that, as {target: source}.

        Raises:
            OutOfPages: too few are free; nothing has changed.
        """
        first, size = sequence.num_computed // self._pool.page_size, len(sequence.pages)
        shared = [i for i in range(first, size) if self._pool.is_shared(sequence.pages[i])]
        copies: dict[int, int] = {}
        count = max(self._pool.num_needed(end) - size, 0) + len(shared)
        if not count:
            return copies
        fresh = self._pool.allocate(count)
        for i in shared:
            source, sequence.pages[i] = sequence.pages[i], fresh.pop()
            copies[sequence.pages[i]] = source
            self._pool.free([source])
        sequence.pages += fresh
        return copies

    def register(self, sequence: Sequence, start: int, end: int) -> None:
        """Lets others find the pages that positions start … end - 1 have filled."""
        size = self._pool.page_size
        if full := range(start // size, end // size):
            hashes = self._hashes(sequence, end)
            for i in full:
                self._pool.register(sequence.pages[i], hashes[i])

    def share(self, sequence: Sequence) -> None:
        """Counts one holder more of a sequence's pages: it has been forked."""
        self._pool.share(sequence.pages)

    def evict(self, sequence: Sequence) -> None:
        """Lets nobody find the sequence's pages any more: what they hold may be broken."""
        self._pool.evict(sequence.pages)

    def free(self, sequence: Sequence) -> None:
        """Takes back the pages of a sequence that no longer runs."""
        self._pool.free(sequence.pages)
        sequence.pages = []

    def check(self, running: Iterable[Sequence]) -> None:
        """Asserts that the accounts agree with what sequences hold."""
        self._pool.check(sequence.pages for sequence in running)

    def _num_missing(self, sequence: Sequence, prefix: Seq[int]) -> int:
        return self._pool.num_needed(len(sequence.tokens)) - len(prefix)

    def _hashes(self, sequence: Sequence, end: int | None = None) -> list[bytes]:
        """What is in the sequence's full pages, or will be when they are computed; to token end - 1 at least."""
        sequence.hashes = block_hashes(sequence.request, sequence.tokens[:end], self._pool.page_size, sequence.hashes)
        return sequence.hashes


class StepReservations:
    """The pages that one step's rows write to. When none are free, the youngest running sequence is preempted."""

    def __init__(self, cache: KVCacheManager, running: Seq[Sequence], preempt: Callable[[Sequence], None]) -> None:
        """`running` is the scheduler's own, oldest first; `preempt` takes a sequence out of it and frees its pages."""
        self._cache, self._running, self._preempt = cache, running, preempt
        self._copies: dict[int, int] = {}

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """The copies of pages before the rows are computed, each (source, target)."""
        return tuple((source, target) for target, source in self._copies.items())

    def reserve(self, sequence: Sequence, end: int) -> bool:
        """Gives the sequence pages for positions num_computed … end - 1; False when it had to be preempted itself."""
        while True:
            try:
                if copies := self._cache.reserve(sequence, end):
                    self._copies |= copies
                return True
            except OutOfPages:
                victim = self._running[-1]
                for page in victim.pages:
                    self._copies.pop(page, None)
                self._preempt(victim)
                if victim is sequence:
                    return False
