"""Accounting of the pages that hold keys and values of text.

Owns which pages are free, how many sequences share each, and which content stands in which page. A page
that nobody holds any more keeps its content until it is needed for something else: the one that was
held longest ago goes first. Knows neither what a content's key is made of nor why a sequence wants a page.
"""

from collections.abc import Iterable, Sequence


class OutOfPages(Exception):
    """Not enough free pages; nothing was taken."""


class PagePool:
    """A fixed number of pages with reference counts."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """`page_size` is in tokens."""
        self.num_pages = num_pages
        self.page_size = page_size
        self._empty = list(range(num_pages - 1, -1, -1))
        self._idle: dict[int, None] = {}  # free pages with content, in the order in which they became free
        self._refs = [0] * num_pages
        self._keys: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._empty) + len(self._idle)

    def num_needed(self, num_tokens: int) -> int:
        """How many pages hold that many tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages, each then held once; their content is forgotten.

        Raises:
            OutOfPages: fewer are free.
        """
        if count > self.num_free:
            raise OutOfPages(f"{count} pages wanted, {self.num_free} free")
        taken = [self._empty.pop() if self._empty else self._clear_oldest() for _ in range(count)]
        for page in taken:
            self._refs[page] = 1
        return taken

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages with the contents of these keys, up to the first that is in none."""
        found = []
        for key in keys:
            if key not in self._pages:
                break
            found.append(self._pages[key])
        return found

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of the pages are among the free ones."""
        return sum(page in self._idle for page in pages)

    def label(self, page: int, key: bytes) -> None:
        """Says what stands in a held page, from now on unchanged. Without effect when another page has the same."""
        assert self._refs[page] > 0, "only a held page has content"
        assert page not in self._keys, "a page's content does not change"
        if key not in self._pages:
            self._keys[page] = key
            self._pages[key] = page

    def forget(self, pages: Iterable[int]) -> None:
        """Lets nobody find the contents of held pages any more."""
        for page in pages:
            if page in self._keys:
                del self._pages[self._keys.pop(page)]

    def share(self, pages: Iterable[int]) -> None:
        """Holds pages once more, for a sequence that has the same beginning."""
        for page in pages:
            assert self._refs[page] > 0 or page in self._idle, "an empty page has nothing to share"
            self._idle.pop(page, None)
            self._refs[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Holds a sequence's pages, in order, once less; those that nobody holds are free again."""
        for page in reversed(pages):  # an end is of no use without its beginning, so ends go first
            assert self._refs[page] > 0, "a page was given back twice"
            self._refs[page] -= 1
            if self._refs[page]:
                continue
            if page in self._keys:
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
        assert self._pages == {key: page for page, key in self._keys.items()}, "a content is in two pages"
        assert self._keys.keys().isdisjoint(self._empty), "an empty page has content"
        assert self._idle.keys() <= self._keys.keys(), "an idle page has no content"

    def _clear_oldest(self) -> int:
        page = next(iter(self._idle))
        del self._idle[page]
        del self._pages[self._keys.pop(page)]
        return page
