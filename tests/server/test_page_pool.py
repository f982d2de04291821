"""Page accounting and which position sees which images."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyglass_server.engine.worker.page_pool import OutOfPages, PagePool
from spyglass_server.runtime.image_spans import image_spans


def test_a_pool_gives_out_each_page_once() -> None:
    pool = PagePool(num_pages=5, page_size=4)
    pages = pool.allocate(3) + pool.allocate(2)
    assert sorted(pages) == [0, 1, 2, 3, 4]
    with pytest.raises(OutOfPages):
        pool.allocate(1)
    pool.free(pages[:2])
    assert pool.num_free == 2


def test_taking_too_many_takes_nothing() -> None:
    pool = PagePool(num_pages=2, page_size=4)
    with pytest.raises(OutOfPages):
        pool.allocate(3)
    assert pool.num_free == 2


def test_a_shared_page_is_free_when_its_last_holder_lets_go() -> None:
    pool = PagePool(num_pages=1, page_size=4)
    pages = pool.allocate(1)
    pool.share(pages)
    assert pool.is_shared(pages[0])
    pool.free(pages)
    assert pool.num_free == 0
    pool.free(pages)
    assert pool.num_free == 1


def test_pages_that_nobody_holds_keep_their_content_until_they_are_needed() -> None:
    pool = PagePool(num_pages=3, page_size=4)
    pages = pool.allocate(2)
    for page, key in zip(pages, (b"a", b"ab"), strict=True):
        pool.register(page, key)
    pool.free(pages)
    assert pool.num_free == 3
    assert pool.lookup([b"a", b"ab", b"abc"]) == pages
    pool.allocate(1)  # an empty page is taken first
    assert pool.lookup([b"a", b"ab"]) == pages
    pool.allocate(1)  # then the end of a sequence, not its beginning
    assert pool.lookup([b"a", b"ab"]) == pages[:1]
    pool.share(pages[:1])
    pool.check([pages[:1], [2], pages[1:]])


@given(tokens=st.integers(0, 100), size=st.integers(1, 17))
def test_the_pages_needed_hold_the_tokens_and_not_a_page_more(tokens: int, size: int) -> None:
    needed = PagePool(1, size).num_needed(tokens)
    assert (needed - 1) * size < tokens <= needed * size or (tokens == needed == 0)


def reference_masks(positions: list[int], length: int) -> list[list[int]]:
    """The reference's rule as it is written there: for each image, where it is first and last seen."""
    if not positions:
        return []
    masks = [[a, b] for a, b in zip(positions, [*positions[1:], length], strict=True)]
    end = length
    for mask in reversed(masks):
        if mask[0] == mask[1] - 1:
            mask[1] = end
        end = mask[1]
    return masks


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_spans_follow_the_reference(is_image: list[bool], data: st.DataObject) -> None:
    positions = [i for i, image in enumerate(is_image) if image]
    start = data.draw(st.integers(0, len(is_image) - 1))
    end = data.draw(st.integers(start + 1, len(is_image)))
    seen: dict[int, set[int]] = {}
    for span in image_spans(positions, start, end):
        for position in range(span.start, span.end):
            assert position not in seen
            seen[position] = set(range(span.first, span.last))
    for position in range(start, end):
        expected = {i for i, (a, b) in enumerate(reference_masks(positions, len(is_image))) if a <= position < b}
        assert seen.get(position, set()) == expected, position


def test_generated_tokens_see_the_last_group() -> None:
    (span,) = image_spans([2, 5, 6], 20, 21)
    assert (span.first, span.last) == (1, 3)
