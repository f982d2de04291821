"""Accounting of the pages that hold keys and values of text.

Owns which pages are free and how many sequences share each. Knows neither what stands in a page
nor why a sequence wants one.
"""

from collections.abc import Iterable


class OutOfPages(Exception):
    """Not enough free pages; nothing was taken."""


class PagePool:
    """A fixed number of pages with reference counts."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """`page_size` is in tokens."""
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_needed(self, num_tokens: int) -> int:
        """How many pages hold that many tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages, each then held once.

        Raises:
            OutOfPages: fewer are free.
        """
        if count > len(self._free):
            raise OutOfPages(f"{count} pages wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._refs[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Holds pages once more, for a sequence that has the same beginning."""
        for page in pages:
            assert self._refs[page] > 0, "only a held page can be shared"
            self._refs[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Holds pages once less; those that nobody holds are free again."""
        for page in pages:
            assert self._refs[page] > 0, "a page was given back twice"
            self._refs[page] -= 1
            if not self._refs[page]:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Asserts that counts and free list agree with the pages that sequences hold."""
        counts = [0] * self.num_pages
        for pages in holders:
            for page in pages:
                counts[page] += 1
        assert counts == self._refs, "reference counts differ from the holders"
        free = sorted(self._free)
        assert free == [page for page, refs in enumerate(counts) if not refs], "the free list is wrong"
