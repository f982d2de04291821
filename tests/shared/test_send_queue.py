"""The order in which requests are written."""

import asyncio

import pytest

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES
from spyglass_common.send_queue import SendQueue, image_chunks

CHUNK = bytes(MAX_IMAGE_CHUNK_BYTES)


async def drain(queue: SendQueue) -> list[tuple[int, int, bool]]:
    """The id, image and last mark of all requests."""
    queue.close()
    order = []
    while (request := await queue.get()) is not None:
        order.append((request.id, request.image_chunk.image_index, request.image_chunk.last))
    return order


async def test_starts_and_cancels_go_ahead_of_chunks_and_uploads_take_turns() -> None:
    queue = SendQueue()
    queue.put_image(1, 0, CHUNK * 2)
    queue.put_image(1, 1, CHUNK)
    queue.put_image(2, 0, CHUNK)
    queue.put(pb.GenerateRequest(id=3, start=pb.Start()))
    assert await drain(queue) == [(3, 0, False), (1, 0, False), (2, 0, True), (1, 0, True), (1, 1, True)]


async def test_a_start_waits_for_one_chunk_at_most() -> None:
    queue = SendQueue()
    queue.put_image(1, 0, CHUNK * 3)
    assert await queue.get()
    queue.put(pb.GenerateRequest(id=2, start=pb.Start()))
    assert await drain(queue) == [(2, 0, False), (1, 0, False), (1, 0, True)]


async def test_images_that_are_dropped_are_not_sent() -> None:
    queue = SendQueue()
    queue.put_image(1, 0, CHUNK * 3)
    queue.put_image(2, 0, CHUNK)
    assert await queue.get()
    queue.drop_images(1)
    assert await drain(queue) == [(2, 0, True)]


async def test_get_waits_for_what_comes() -> None:
    queue = SendQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put(pb.GenerateRequest(id=1))
    assert await waiting == pb.GenerateRequest(id=1)


@pytest.mark.parametrize("size", [0, 1, MAX_IMAGE_CHUNK_BYTES, MAX_IMAGE_CHUNK_BYTES + 1])
def test_chunks_hold_the_whole_image_and_the_last_is_marked(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    chunks = list(image_chunks(7, data))
    assert b"".join(chunk.data for chunk in chunks) == data
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {chunk.image_index for chunk in chunks} == {7}
    assert all(len(chunk.data) <= MAX_IMAGE_CHUNK_BYTES for chunk in chunks)
