"""The pages of running sequences: allocation, prefix caching, copy on write, preemption.

`PagePool` counts pages; this module decides which sequence gets them.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from spyglass_server.engine.worker.block_hashes import block_hashes
from spyglass_server.engine.worker.page_pool import OutOfPages, PagePool
from spyglass_server.engine.worker.sequence import Sequence


class KVCacheManager:
    """Allocates and frees the pages for sequences' keys and values; sequences with a common prefix share pages."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool

    @property
    def usage(self) -> float:
        """The fraction of pages that sequences hold."""
        return 1 - self._pool.num_free / self._pool.num_pages

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of `num_tokens` tokens fits in all pages."""
        return self._pool.num_needed(num_tokens) <= self._pool.num_pages

    def cached_prefix(self, sequence: Sequence) -> list[int]:
        """Returns cached pages of the sequence's prefix, never its last token: that yields the next one's logits."""
        if sequence.request.prompt_logprobs:
            return []  # pages store no logprobs
        return self._pool.lookup(self._hashes(sequence)[: (len(sequence.tokens) - 1) // self._pool.page_size])

    def has_room(self, sequence: Sequence, prefix: Seq[int]) -> bool:
        """Whether a sequence can begin now with a cached prefix."""
        return self._num_missing(sequence, prefix) <= self._pool.num_free - self._pool.num_idle(prefix)

    def begin(self, sequence: Sequence, prefix: Seq[int]) -> None:
        """Gives a sequence its pages: the cached prefix, and new ones for its other tokens. Requires `has_room`."""
        self._pool.share(prefix)
        sequence.pages = [*prefix, *self._pool.allocate(self._num_missing(sequence, prefix))]
        sequence.num_computed = len(prefix) * self._pool.page_size

    def has_spare_room(self, sequence: Sequence, end: int, num_kept: int) -> bool:
        """Whether positions up to end - 1 fit and still leave `num_kept` pages free."""
        return self._pool.num_needed(end) - len(sequence.pages) + num_kept <= self._pool.num_free

    def reserve(self, sequence: Sequence, end: int) -> dict[int, int]:
        """Gives the sequence unshared pages for positions num_computed … end - 1.

        Returns the page copies that this requires, as {target: source}.

        Raises:
            OutOfPages: too few pages are free; nothing has changed.
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
        """Lets other sequences find the pages that positions start … end - 1 have filled."""
        size = self._pool.page_size
        if full := range(start // size, end // size):
            hashes = self._hashes(sequence, end)
            for i in full:
                self._pool.register(sequence.pages[i], hashes[i])

    def share(self, sequence: Sequence) -> None:
        """Adds a holder to the pages of a sequence that has been forked."""
        self._pool.share(sequence.pages)

    def evict(self, sequence: Sequence) -> None:
        """Removes the sequence's pages from the prefix cache, as their content may be broken."""
        self._pool.evict(sequence.pages)

    def free(self, sequence: Sequence) -> None:
        """Frees the pages of a sequence that no longer runs."""
        self._pool.free(sequence.pages)
        sequence.pages = []

    def check(self, running: Iterable[Sequence]) -> None:
        """Asserts that the accounts agree with what sequences hold."""
        self._pool.check(sequence.pages for sequence in running)

    def _num_missing(self, sequence: Sequence, prefix: Seq[int]) -> int:
        return self._pool.num_needed(len(sequence.tokens)) - len(prefix)

    def _hashes(self, sequence: Sequence, end: int | None = None) -> list[bytes]:
        """Hashes of the sequence's full pages, computed or not, at least up to token end - 1."""
        sequence.hashes = block_hashes(sequence.request, sequence.tokens[:end], self._pool.page_size, sequence.hashes)
        return sequence.hashes


class StepReservations:
    """Reserves the pages that one step's rows write to; preempts the youngest running sequence when none are free."""

    def __init__(self, cache: KVCacheManager, running: Seq[Sequence], preempt: Callable[[Sequence], None]) -> None:
        """`running` is the scheduler's list, oldest first; `preempt` removes a sequence from it and frees its pages."""
        self._cache, self._running, self._preempt = cache, running, preempt
        self._copies: dict[int, int] = {}

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """Pages to copy before the rows are computed, each (source, target)."""
        return tuple((source, target) for target, source in self._copies.items())

    def reserve(self, sequence: Sequence, end: int) -> bool:
        """Gives the sequence pages for positions num_computed … end - 1; False if it had to be preempted itself."""
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
