"""Answers, streams and cancels of the asynchronous client."""

import asyncio

import pytest

from fake_service import FakeService, Turn, until_cancelled
from spyglass.v1 import chat_pb2, options_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_client import AsyncClient, TextChunk, Usage, assistant, system, user


async def test_a_question_is_answered(client: AsyncClient, service: FakeService) -> None:
    answer = await client.generate("how are you", system="be kind", request_id="mine")
    assert answer.text == "how are you "
    assert answer.token_ids == (4, 4, 4, 0)
    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, estimated_cost=0.5)
    assert answer.usage.total_tokens == 10
    assert answer.request_id == "mine"
    assert service.authorizations == ["Bearer sk-test"]
    [turn] = service.turns
    assert [(message.role, message.parts[0].text) for message in turn.start.chat.messages] == [
        (chat_pb2.ROLE_SYSTEM, "be kind"),
        (chat_pb2.ROLE_USER, "how are you"),
    ]


async def test_every_option_reaches_the_server(client: AsyncClient, service: FakeService) -> None:
    await client.generate(
        "q",
        model="m",
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=9,
        min_p=0.25,
        seed=2**64 - 1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={7: -100},
        min_tokens=2,
        top_logprobs=3,
        running_usage=True,
        regex="a+",
        stop=["a", "b"],
        stop_token_ids=[3],
        ignore_eos=True,
        n=2,
        timeout_s=1.5,
        request_id="r",
    )
    start = service.turns[0].start
    assert (start.model, start.n, start.request_id) == ("m", 2, "r")
    assert start.timeout.ToTimedelta().total_seconds() == 1.5
    sampling = start.sampling
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 9, 0.25)
    assert sampling.seed == 2**64 - 1
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.5)
    assert dict(sampling.logit_bias) == {7: -100}
    assert start.output == options_pb2.Output(logprobs=True, top_logprobs=3, running_usage=True)
    assert start.format.regex == "a+"
    assert start.stopping.min_tokens == 2
    stopping = start.stopping
    assert (stopping.max_tokens, list(stopping.strings), list(stopping.token_ids)) == (5, ["a", "b"], [3])
    assert stopping.ignore_eos


async def test_absent_options_are_left_to_the_server(client: AsyncClient, service: FakeService) -> None:
    await client.generate("q", temperature=None, stop="end")
    start = service.turns[0].start
    assert not start.HasField("sampling")
    assert not start.HasField("n")
    assert not start.HasField("timeout")
    assert list(start.stopping.strings) == ["end"]
    assert start.request_id


async def test_an_unknown_option_is_refused_by_name(client: AsyncClient) -> None:
    with pytest.raises(TypeError, match=r"max_token$"):
        await client.generate("q", max_token=3)  # type: ignore[call-arg]


async def test_ready_prompts(client: AsyncClient, service: FakeService) -> None:
    assert (await client.generate(text="<|begin|> once upon")).text == "<|begin|> once upon "
    await client.generate(tokens=[128000, 5])
    assert list(service.turns[1].start.tokens.ids) == [128000, 5]


@pytest.mark.parametrize(
    "prompt",
    [{}, {"question": "q", "text": "t"}, {"text": "t", "tokens": [1]}, {"text": "t", "system": "s"}],
)
async def test_a_prompt_is_exactly_one_of_its_forms(client: AsyncClient, prompt: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="question"):
        await client.generate(**prompt)  # type: ignore[arg-type]


async def test_a_conversation(client: AsyncClient, service: FakeService) -> None:
    answer = await client.chat([system("s"), user("one"), assistant("two"), user("three")])
    assert answer.text == "three "
    roles = [message.role for message in service.turns[0].start.chat.messages]
    assert roles == [chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_USER]
    with pytest.raises(ValueError, match="at least one"):
        await client.chat([])


async def test_a_stream_gives_text_as_it_comes(client: AsyncClient, service: FakeService) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        turn.accept()
        turn.say("Hel")
        await go_on.wait()
        turn.say("lo", reason=pb.FINISH_REASON_LENGTH)
        turn.finish()

    service.script = script
    chunks = []
    async with client.stream("q") as generation:
        with pytest.raises(RuntimeError, match="no answer yet"):
            _ = generation.answer
        async for chunk in generation:
            chunks.append(chunk)
            go_on.set()
    assert chunks == [
        TextChunk(index=0, text="Hel", token_ids=(3,)),
        TextChunk(index=0, text="lo", token_ids=(2,), finish_reason="length"),
    ]
    assert generation.answer.text == "Hello"
    assert generation.answer.finish_reason == "length"


async def test_chunks_tell_what_was_used_so_far(client: AsyncClient, service: FakeService) -> None:
    async def script(turn: Turn) -> None:
        turn.accept()
        for index, count in ((0, 1), (1, 2), (0, 3)):
            delta = pb.Delta(index=index, text="a", usage=pb.Usage(prompt_tokens=7, completion_tokens=count))
            turn.stream.send(pb.Event(id=turn.id, delta=delta))
        turn.say("", index=0, reason=pb.FINISH_REASON_STOP)
        turn.say("", index=1, reason=pb.FINISH_REASON_STOP)
        turn.finish()

    service.script = script
    async with client.stream("q", n=2, running_usage=True) as generation:
        await client.generate("another")  # by now all of it has come
        told = [chunk.usage async for chunk in generation]
    assert told == [Usage(prompt_tokens=7, completion_tokens=3)] * 2


async def test_several_choices(client: AsyncClient, service: FakeService) -> None:
    async def script(turn: Turn) -> None:
        turn.accept()
        turn.say("b", index=1, reason=pb.FINISH_REASON_LENGTH)
        turn.say("a", index=0, reason=pb.FINISH_REASON_STOP)
        turn.finish()

    service.script = script
    answer = await client.generate("q", n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]


async def test_many_at_once_share_one_stream_with_growing_ids(client: AsyncClient, service: FakeService) -> None:
    answers = await asyncio.gather(*(client.generate(f"number {number}") for number in range(50)))
    assert [answer.text for answer in answers] == [f"number {number} " for number in range(50)]
    [stream] = service.streams
    ids = [request.id for request in stream.requests]
    assert ids == sorted(set(ids))
    assert len(ids) == 50


async def test_a_reader_that_stops_holds_up_nobody_and_gets_longer_chunks(
    client: AsyncClient, service: FakeService
) -> None:
    async with client.stream("a b c d e f") as slow:
        assert (await client.generate("quick")).text == "quick "
        chunks = [chunk async for chunk in slow]
    assert chunks == [TextChunk(index=0, text="a b c d e f ", token_ids=(2, 2, 2, 2, 2, 2, 0), finish_reason="stop")]


async def test_cancel_ends_the_iteration_with_the_text_so_far(client: AsyncClient, service: FakeService) -> None:
    service.script = until_cancelled
    async with client.stream("q") as generation:
        async for chunk in generation:
            assert chunk.text == "first "
            generation.cancel()
    assert generation.answer.text == "first "
    assert generation.answer.finish_reason == "cancelled"
    assert generation.answer.usage.completion_tokens == 3


async def test_cancel_before_the_start_still_cancels(client: AsyncClient, service: FakeService) -> None:
    service.script = until_cancelled
    generation = client.stream("q")
    generation.cancel()
    assert (await asyncio.wait_for(generation.result(), 10)).finish_reason == "cancelled"


async def test_leaving_the_with_cancels(client: AsyncClient, service: FakeService) -> None:
    service.script = until_cancelled
    async with client.stream("q") as generation:
        pass
    assert (await asyncio.wait_for(generation.result(), 10)).finish_reason == "cancelled"
    assert service.turns[0].cancelled.is_set()


async def test_breaking_out_of_the_loop_cancels(client: AsyncClient, service: FakeService) -> None:
    service.script = until_cancelled
    generation = client.stream("q")
    async for _ in generation:
        break
    assert (await asyncio.wait_for(generation.result(), 10)).finish_reason == "cancelled"


async def test_a_cancelled_task_cancels_its_generation(client: AsyncClient, service: FakeService) -> None:
    service.script = until_cancelled
    task = asyncio.create_task(client.generate("q"))
    turn = await service.new_turns.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(turn.cancelled.wait(), 10)


async def test_cancel_after_the_end_is_not_sent(client: AsyncClient, service: FakeService) -> None:
    async with client.stream("q") as generation:
        await generation.result()
        generation.cancel()
    await client.generate("another")
    assert [request.WhichOneof("kind") for request in service.streams[0].requests] == ["start", "start"]
