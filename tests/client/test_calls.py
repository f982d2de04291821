"""The short calls, and where the client takes its address and key from."""

from datetime import UTC, datetime

import pytest

from fake_service import FakeService
from spyglass_client import AsyncClient, image, user
from spyglass_client.target import dialable


async def test_models(client: AsyncClient) -> None:
    [model] = await client.models()
    assert (model.id, model.context_length, model.max_images, model.tags) == ("spyglass-demo", 2048, 16, ("vision",))
    assert model.pricing.output_tokens == 0.4
    assert (model.memory.device_name, model.memory.device_bytes) == ("cpu", 24_000_000_000)
    assert (model.memory.kv_cache_tokens, model.memory.kv_cache_bytes) == (23_296, 2_147_000_000)
    assert model.created == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


async def test_usage(client: AsyncClient) -> None:
    usage = await client.usage()
    assert (usage.key_id, usage.prompt_tokens, usage.completion_tokens, usage.records) == ("key-1", 70, 30, ())
    running, ended = (await client.usage(max_records=2)).records
    assert (running.outcome, running.finished) == ("", None)
    assert ended.outcome == "OK"
    assert ended.finished == datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)


async def test_access(client: AsyncClient) -> None:
    assert await client.check_access() == "key-1"


async def test_tokens_are_counted_for_every_kind_of_prompt(client: AsyncClient) -> None:
    assert await client.count_tokens("q", images=[b"picture"]) == 2
    assert await client.count_tokens(tokens=[1, 2, 3]) == 3
    assert await client.count_chat_tokens([user("a", image(b"x" * (1 << 21))), user("b")]) == 3


async def test_address_and_key_from_the_environment(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPYGLASS_GRPC", service.target)
    monkeypatch.setenv("SPYGLASS_API_KEY", "first, second")
    async with AsyncClient() as client:
        assert client.target == service.target
        await client.check_access()
    monkeypatch.delenv("SPYGLASS_API_KEY")
    async with AsyncClient() as client:
        await client.check_access()
    assert service.authorizations == ["Bearer first", ""]


def test_a_key_that_no_header_could_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        AsyncClient(api_key="schlüssel\n")


@pytest.mark.parametrize(
    ("listen", "dial"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("example.org:1", "example.org:1"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_an_address_to_listen_at_becomes_one_to_call(listen: str, dial: str) -> None:
    assert dialable(listen) == dial
