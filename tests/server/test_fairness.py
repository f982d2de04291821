"""One tenant's worst does not keep another from its answers."""

import asyncio
import contextlib
import io
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fakes import FakeLoader, run_test_server
from spyglass.v1 import chat_pb2, inference_pb2
from spyglass_client import AsyncClient, SpyglassError
from spyglass_common.fair_slots import FairSlots
from spyglass_server.admission import Admission
from spyglass_server.codec.chat import ImageLimits
from spyglass_server.codec.start import decode_start
from spyglass_server.errors import InvalidImage, InvalidRequest, TooManyRequests
from spyglass_server.image_decoder import ImageDecoder
from spyglass_server.images import ImageSpec
from spyglass_server.upload import Upload

WORST, OTHER = "worst-key", "other-key"
SPEC = ImageSpec(tile_size=56, max_tiles=4)


# --- the parts -------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("aab"), min_size=1, max_size=30), st.integers(2, 6), st.integers(0, 1 << 30))
def test_slots_are_shared_and_none_is_lost(tenants: list[str], num_slots: int, seed: int) -> None:
    share, chance = num_slots // 2, random.Random(seed)

    async def run() -> None:
        slots, held = FairSlots(num_slots, share), Counter[str]()

        async def work(tenant: str) -> None:
            async with slots.hold(tenant):
                held[tenant] += 1
                assert held[tenant] <= share
                assert held.total() <= num_slots
                try:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    held[tenant] -= 1

        tasks = [asyncio.create_task(work(tenant)) for tenant in tenants]
        for task in tasks:
            if chance.random() < 0.3:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert held.total() == 0
        async with contextlib.AsyncExitStack() as stack:  # all places are there again
            for i in range(num_slots):
                await asyncio.wait_for(stack.enter_async_context(slots.hold(i)), 1)

    asyncio.run(run())


async def test_who_holds_fewest_is_next() -> None:
    slots, order = FairSlots(2, share=1), list[str]()

    async def work(tenant: str) -> None:
        async with slots.hold(tenant):
            order.append(tenant)
            await asyncio.sleep(0.01)

    await asyncio.gather(*map(work, "aaaaab"))
    assert order == ["a", "b", "a", "a", "a", "a"]


def test_each_tenant_has_places_of_its_own() -> None:
    admission = Admission(32, 1 << 30, 1 << 20)
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(admission.admit("worst"))
        for tenant in ("worst", "worst"):
            with pytest.raises(TooManyRequests), admission.admit(tenant):
                pass
        for _ in range(2):
            stack.enter_context(admission.admit("other"))
        with pytest.raises(TooManyRequests), admission.admit("other"):
            pass
        stack.enter_context(admission.admit("a third"))
    for _ in range(32):
        stack.enter_context(admission.admit("worst"))


def test_bytes_and_tokens_are_bounded_with_a_share_for_each_tenant() -> None:
    admission = Admission(32, 1600, 3200)
    with contextlib.ExitStack() as stack:
        worst, again, other = (stack.enter_context(admission.admit(tenant)) for tenant in ("a", "a", "b"))
        worst.hold_bytes(2000)  # alone it may have any amount
        worst.hold_bytes(1550)
        for more in (51, 1000):
            with pytest.raises(TooManyRequests):
                again.grow(more)
        again.grow(50)
        other.hold_bytes(100)  # its own
        with pytest.raises(TooManyRequests):
            other.grow(1)
        worst.hold_bytes(0)
        other.grow(1)
        worst.hold_tokens(3200)
        with pytest.raises(TooManyRequests):
            again.hold_tokens(1)
        other.hold_tokens(200)
    with admission.admit("a") as place:
        place.hold_bytes(1600)
        place.hold_tokens(3200)


async def test_pieces_of_images_that_come_after_the_end_hold_nothing() -> None:
    part = chat_pb2.Part(image=chat_pb2.Image(announced=chat_pb2.Announced()))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[part])
    spec = decode_start(inference_pb2.Start(chat=chat_pb2.Chat(messages=[message])), ImageLimits(1, 1000))
    admission, upload = Admission(2, 100, 100), Upload()
    piece = inference_pb2.ImageChunk(data=b"x" * 60)
    with admission.admit("a") as place:
        upload.expect(spec, ImageLimits(1, 1000), place.grow)
        waiting = asyncio.create_task(upload.complete())
        await asyncio.sleep(0)
        upload.add(piece)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(InvalidRequest):
        upload.add(piece)
    with admission.admit("a") as first, admission.admit("b") as second:
        first.hold_bytes(50)
        second.hold_bytes(50)


def test_a_place_that_waits_for_its_caller_goes_to_another_tenant() -> None:
    admission, lost = Admission(4, 1 << 30, 1 << 20), list[int]()
    with contextlib.ExitStack() as stack:
        for number in range(4):
            place = stack.enter_context(admission.admit("worst"))
            stack.enter_context(place.waiting(partial(lambda number, error: lost.append(number), number)))
        with pytest.raises(TooManyRequests), admission.admit("worst"):  # not to the same tenant's
            pass
        stack.enter_context(admission.admit("other"))  # its own
        stack.enter_context(admission.admit("other"))
        assert lost == [0, 1]
        for _ in range(2):
            stack.enter_context(admission.admit("other"))
        assert lost == [0, 1, 2, 3]
        with pytest.raises(TooManyRequests), admission.admit("other"):
            pass
    for _ in range(2):  # none is lost, none is there twice
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(admission.admit("a"))
            with pytest.raises(TooManyRequests), admission.admit("a"):
                pass


@pytest.fixture
async def decoder() -> AsyncIterator[ImageDecoder]:
    one = ImageDecoder(max_pixels=40_000_000)
    yield one
    await asyncio.to_thread(one.close)


def encoded(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", compress_level=1)
    return file.getvalue()


async def test_the_largest_picture_fits_and_what_takes_too_much_is_refused(
    decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = await decoder.tiles(encoded((6300, 6300), "RGBA"), SPEC, tenant="a", field="f")
    assert (tiles.rows, tiles.columns) == (2, 2)
    with pytest.raises(InvalidImage, match="damaged") as refusal:
        await decoder.tiles(b"junk", SPEC, tenant="a", field="f")
    assert refusal.value.field == "f"
    monkeypatch.setattr("spyglass_server.image_decoder._DECODE_S", 0.05)
    with pytest.raises(InvalidImage, match="too much time or memory"):
        await decoder.tiles(encoded((6300, 6299), "RGBA"), SPEC, tenant="a", field="f")
    monkeypatch.undo()
    assert (await decoder.tiles(encoded((20, 20)), SPEC, tenant="a", field="f")).rows == 1


async def test_a_picture_that_takes_too_much_memory_is_refused() -> None:
    decoder = ImageDecoder(max_pixels=1)
    decoder._max_pixels = 88_400_000  # as if the limit of memory were too low
    try:
        with pytest.raises(InvalidImage, match="too much time or memory"):
            await decoder.tiles(encoded((9400, 9400)), SPEC, tenant="a", field="f")
        assert (await decoder.tiles(encoded((20, 20)), SPEC, tenant="a", field="f")).rows == 1
    finally:
        await asyncio.to_thread(decoder.close)


# --- through the server ----------------------------------------------------------------------------


async def schemas(client: AsyncClient) -> None:
    """A schema of 3,000 integer properties."""
    names = [f"p{i}" for i in range(3000)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    await client.generate("x", max_tokens=2, json_schema=schema)


async def pictures(client: AsyncClient) -> None:
    """Four pictures that are as large as they may be."""
    file = encoded((6300, 6300))
    await client.generate("x", images=[file + secrets.token_bytes(8) for _ in range(4)], max_tokens=2)


WORSTS: dict[str, tuple[int, Callable[[AsyncClient], Any]]] = {"schemas": (8, schemas), "pictures": (4, pictures)}
"""How many such calls, and one of them."""


@pytest.mark.parametrize("way", WORSTS)
async def test_another_keys_call_is_as_quick_as_alone(tiny_checkpoint: Path, tmp_path: Path, way: str) -> None:
    count, call = WORSTS[way]
    async with (
        run_test_server(tiny_checkpoint, tmp_path, FakeLoader(), api_key=(WORST, OTHER)) as server,
        AsyncClient(server.server.address, api_key=WORST) as worst,
        AsyncClient(server.server.address, api_key=OTHER) as other,
    ):
        alone = max([await seconds(other) for _ in range(5)])

        async def misuse() -> None:
            with contextlib.suppress(SpyglassError):
                await call(worst)

        running = [asyncio.create_task(misuse()) for _ in range(count)]
        await asyncio.sleep(0.2)
        while_misused = [await seconds(other) for _ in range(5)]
        assert not all(task.done() for task in running)
        assert sorted(while_misused)[2] < max(3 * alone, 0.3)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def seconds(client: AsyncClient) -> float:
    began = time.monotonic()
    await client.generate("hi", max_tokens=1)
    return time.monotonic() - began


async def test_images_that_never_come_take_no_other_keys_places(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_key": (WORST, OTHER), "max_pending": 32}
    async with (
        run_test_server(tiny_checkpoint, tmp_path, FakeLoader(), **settings) as server,
        AsyncClient(server.server.address, api_key=OTHER) as other,
    ):
        stream = server.open_stream(WORST)
        for number in range(32):
            await stream.start(number, announced())
        for number in range(32):
            await stream.until(number, "accepted")
        assert await seconds(other) < 1
        stream.call.cancel()


def announced() -> inference_pb2.Start:
    part = chat_pb2.Part(image=chat_pb2.Image(announced=chat_pb2.Announced()))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[part, chat_pb2.Part(text="?")])
    return inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]))
