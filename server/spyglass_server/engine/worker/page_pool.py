"""Accounting of KV cache pages: which are free, how many sequences share each, what each contains.

A page without holders keeps its content, indexed by block hash, until it is allocated again; the page that was held
longest ago is reused first.
"""

from collections.abc import Iterable, Sequence


class OutOfPages(Exception):
    """Not enough free pages; nothing was allocated."""


class PagePool:
    """A fixed number of pages with reference counts."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """`page_size` is in tokens."""
        self.num_pages = num_pages
        self.page_size = page_size
        self._empty = list(range(num_pages - 1, -1, -1))
        self._idle: dict[int, None] = {}  # free pages with content, in the order in which they became free
        self._refs = [0] * num_pages
        self._hashes: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Number of pages without holders."""
        return len(self._empty) + len(self._idle)

    def num_needed(self, num_tokens: int) -> int:
        """How many pages `num_tokens` tokens need."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Allocates `count` free pages, each with one holder, and evicts their content.

        Raises:
            OutOfPages: fewer pages are free.
        """
        if count > self.num_free:
            raise OutOfPages(f"{count} pages wanted, {self.num_free} free")
        taken = [self._empty.pop() if self._empty else self._evict_oldest() for _ in range(count)]
        for page in taken:
            self._refs[page] = 1
        return taken

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """The pages with these block hashes, up to the first hash that no page has."""
        found = []
        for block_hash in hashes:
            if block_hash not in self._pages:
                break
            found.append(self._pages[block_hash])
        return found

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of the pages are among the free ones."""
        return sum(page in self._idle for page in pages)

    def register(self, page: int, block_hash: bytes) -> None:
        """Records the block hash of a held page that is now full; no effect if another page has the same hash."""
        assert self._refs[page] > 0, "only a held page has content"
        assert page not in self._hashes, "a page's content does not change"
        if block_hash not in self._pages:
            self._hashes[page] = block_hash
            self._pages[block_hash] = page

    def evict(self, pages: Iterable[int]) -> None:
        """Removes held pages from the index, so that no lookup finds them."""
        for page in pages:
            if page in self._hashes:
                del self._pages[self._hashes.pop(page)]

    def share(self, pages: Iterable[int]) -> None:
        """Adds a holder to pages: a sequence with the same beginning."""
        for page in pages:
            assert self._refs[page] > 0 or page in self._idle, "an empty page has nothing to share"
            self._idle.pop(page, None)
            self._refs[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Removes a holder from a sequence's pages, given in order; pages without holders become free."""
        for page in reversed(pages):  # a page is useless without those before it, so the last is reused first
            assert self._refs[page] > 0, "a page was freed twice"
            self._refs[page] -= 1
            if self._refs[page]:
                continue
            if page in self._hashes:
                self._idle[page] = None
            else:
                self._empty.append(page)

    def is_shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Asserts that counts, free pages and contents agree with the pages that sequences hold."""
        counts = [0] * self.num_pages
        for pages in holders:
            for page in pages:
                counts[page] += 1
        assert counts == self._refs, "reference counts differ from the holders"
        free = sorted([*self._empty, *self._idle])
        assert free == [page for page, refs in enumerate(counts) if not refs], "the free pages are wrong"
        assert self._pages == {block_hash: page for page, block_hash in self._hashes.items()}, "two pages have a hash"
        assert self._hashes.keys().isdisjoint(self._empty), "an empty page has content"
        assert self._idle.keys() <= self._hashes.keys(), "an idle page has no content"

    def _evict_oldest(self) -> int:
        page = next(iter(self._idle))
        del self._idle[page]
        del self._pages[self._hashes.pop(page)]
        return page
