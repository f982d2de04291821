"""The client for programs without an event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.rpc import code_pb2

from fake_service import FakeService, until_cancelled
from spyglass_client import Client, ClientClosedError, InvalidRequestError, PermissionDeniedError, user
from spyglass_common.status import make_status


async def test_answers_streams_and_calls(service: FakeService) -> None:
    def use() -> None:
        with Client(service.target, api_key="sk-test") as client:
            assert client.target == service.target
            assert client.generate("how are you").text == "how are you "
            assert client.chat([user("hello")]).text == "hello "
            with client.stream("a b") as generation:
                assert "".join(chunk.text for chunk in generation) == "a b "
            assert generation.answer.text == "a b "
            assert generation.answer.request_id == generation.request_id
            assert client.stream_chat([user("c")]).result().text == "c "
            assert client.models()[0].id == "spyglass-demo"
            assert client.usage(1).records[0].request_id == "r0"
            assert client.check_access() == "key-1"
            assert client.count_tokens("q") == 1
            assert client.count_chat_tokens([user("q"), user("r")]) == 2

    await asyncio.to_thread(use)
    assert len(service.streams) == 1


async def test_threads_share_a_client(service: FakeService) -> None:
    def use() -> list[str]:
        with Client(service.target) as client, ThreadPoolExecutor(4) as pool:
            return [answer.text for answer in pool.map(client.generate, ["a", "b", "c", "d"])]

    assert await asyncio.to_thread(use) == ["a ", "b ", "c ", "d "]
    assert len(service.streams) == 1


async def test_leaving_the_loop_cancels(service: FakeService) -> None:
    service.script = until_cancelled

    def use() -> str:
        with Client(service.target) as client:
            generation = client.stream("q")
            for _ in generation:
                break
            return generation.result().finish_reason

    assert await asyncio.to_thread(use) == "cancelled"


async def test_errors_are_raised(service: FakeService) -> None:
    service.refusal = make_status(code_pb2.INVALID_ARGUMENT, "no", "NO")

    def use() -> None:
        with Client(service.target) as client, client.stream("q") as generation, pytest.raises(InvalidRequestError):
            list(generation)

    await asyncio.to_thread(use)


async def test_the_servers_reason_is_never_lost(service: FakeService) -> None:
    service.refusal = make_status(code_pb2.PERMISSION_DENIED, "not you", "DENIED")

    def use() -> None:
        for _ in range(30):  # gRPC itself loses the status in a good part of such calls
            with Client(service.target) as client, pytest.raises(PermissionDeniedError, match="not you"):
                client.generate("q")

    await asyncio.to_thread(use)


def test_a_closed_client_says_so() -> None:
    client = Client("127.0.0.1:1")
    generation = client.stream("q")
    client.close()
    client.close()
    generation.cancel()
    with pytest.raises(ClientClosedError):
        client.generate("q")
