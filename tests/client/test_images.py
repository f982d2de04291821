"""Pictures: read from anywhere, small ones inline, large ones in pieces after Accepted."""

import asyncio
import io
from pathlib import Path

import pytest

from fake_service import FakeService, Turn, repeat
from spyglass_client import AsyncClient, image, user
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES, MAX_INLINE_IMAGE_BYTES

SMALL = b"a small picture"
LARGE = bytes(range(256)) * (MAX_INLINE_IMAGE_BYTES // 256 + 1)


async def test_a_picture_from_a_path_bytes_or_a_file(client: AsyncClient, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(SMALL)
    await client.generate("q", images=[path, str(path), SMALL, io.BytesIO(SMALL)])
    [turn] = service.turns
    parts = turn.start.chat.messages[0].parts
    assert [part.image.data for part in parts[:4]] == [SMALL] * 4
    assert parts[4].text == "q"


async def test_text_and_pictures_keep_their_order(client: AsyncClient, service: FakeService) -> None:
    await client.chat([user("one", image(b"1"), "two", image(b"2")), user("three", image(b"3"), "four")])
    said = [[part.text or part.image.data for part in m.parts] for m in service.turns[0].start.chat.messages]
    assert said == [["one", b"1", "two", b"2"], ["three", b"3", "four"]]


async def test_large_pictures_follow_in_pieces(client: AsyncClient, service: FakeService) -> None:
    received = []

    async def script(turn: Turn) -> None:
        turn.accept()
        received.append(await turn.receive_image())
        received.append(await turn.receive_image())
        turn.finish()

    service.script = script
    await client.generate("q", images=[LARGE, SMALL, LARGE[::-1]])
    assert received == [LARGE, LARGE[::-1]]
    start, *chunks = service.streams[0].requests
    announced = [part.image.WhichOneof("source") for part in start.start.chat.messages[0].parts[:3]]
    assert announced == ["announced", "data", "announced"]
    assert {chunk.image_chunk.image_index for chunk in chunks} == {0, 2}
    assert max(len(chunk.image_chunk.data) for chunk in chunks) == MAX_IMAGE_CHUNK_BYTES


async def test_nothing_is_sent_before_accepted(client: AsyncClient, service: FakeService) -> None:
    accept = asyncio.Event()

    async def script(turn: Turn) -> None:
        if turn.start.chat.messages[0].parts[0].HasField("image"):
            await accept.wait()
        await repeat(turn)

    service.script = script
    async with client.stream("with a picture", images=[LARGE]) as generation:
        await service.new_turns.get()
        await client.generate("without")
        assert [request.WhichOneof("kind") for request in service.streams[0].requests] == ["start", "start"]
        accept.set()
        assert (await generation.result()).text == "with a picture "


async def test_a_cancel_stops_the_upload(client: AsyncClient, service: FakeService) -> None:
    async def script(turn: Turn) -> None:
        await turn.cancelled.wait()
        turn.accept()
        turn.finish()

    service.script = script
    async with client.stream("q", images=[LARGE]) as generation:
        generation.cancel()
        await generation.result()
    service.script = repeat
    await client.generate("another")
    assert [request.WhichOneof("kind") for request in service.streams[0].requests] == ["start", "cancel", "start"]


@pytest.mark.parametrize("images", [["no such file.png"], [b""]])
async def test_a_picture_that_cannot_be_read_is_told_before_anything_is_sent(
    client: AsyncClient, service: FakeService, images: list[str | bytes]
) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=r"no such file|empty"):
        await client.generate("q", images=images)
    assert not service.streams


async def test_a_request_over_the_message_limit_is_refused_here(client: AsyncClient, service: FakeService) -> None:
    with pytest.raises(ValueError, match="too large"):
        await client.generate("x" * (4 << 20))
    with pytest.raises(ValueError, match="too large"):
        await client.count_tokens("q", images=[LARGE] * 4)
    assert not service.streams
