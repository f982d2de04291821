"""Frames: everything in order, merged while nobody reads, and never too large."""

from typing import Any

from spyglass.v1 import inference_pb2
from spyglass_server.codec import events
from spyglass_server.engine.messages import FinishReason
from spyglass_server.outbox import Outbox
from spyglass_server.prompt.tool_calls import CallPiece


async def frames(outbox: Outbox) -> list[inference_pb2.GenerateResponse]:
    outbox.close()
    return [frame async for frame in outbox.frames()]


def delta(event_id: int, index: int, *parts: Any, **more: Any) -> inference_pb2.Event:
    """As a generation makes it."""
    event = events.new_delta(event_id, index)
    events.fill(event.delta, *parts, **more)
    return event


async def test_deltas_of_a_choice_merge_until_they_are_taken() -> None:
    outbox = Outbox()
    outbox.push(delta(1, 0, "a", [1], None, None))
    outbox.push(delta(1, 1, "x", [7], None, None))
    outbox.push(delta(1, 0, "b", [2], FinishReason.STOP, "stop"))
    outbox.push(inference_pb2.Event(id=1, finished=inference_pb2.Finished()))
    (frame,) = await frames(outbox)
    first, second, last = frame.events
    assert (first.delta.text, list(first.delta.token_ids), first.delta.stop_string) == ("ab", [1, 2], "stop")
    assert first.delta.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert second.delta.index == 1
    assert last.HasField("finished")


async def test_a_delta_is_made_where_it_is_sent_from_unless_it_must_join_another() -> None:
    outbox = Outbox()
    first = outbox.new_delta(1, 0)
    assert first is not None
    events.fill(first, "a", [1], None, None)
    assert outbox.new_delta(1, 0) is None
    outbox.push(delta(1, 0, "b", [2], FinishReason.STOP, None))
    other = outbox.new_delta(2, 1)
    assert other is not None
    events.fill(other, "x", [7], None, None)
    taken = outbox.frames()
    frame = await anext(taken)
    assert [(one.id, one.delta.index, one.delta.text) for one in frame.events] == [(1, 0, "ab"), (2, 1, "x")]
    assert frame.events[0].delta.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert outbox.new_delta(1, 0) is not None  # what was taken is on its way
    assert len((await anext(taken)).events) == 1


async def test_a_call_has_one_entry_in_a_delta_however_many_steps_it_holds() -> None:
    outbox = Outbox()
    steps = [
        [CallPiece(0, "id-0", "f", '{"a"')],
        [CallPiece(0, arguments=": 1}"), CallPiece(1, "id-1", "g", "{")],
        [CallPiece(1, arguments='"b": '), CallPiece(2, "id-2", "f", "{}")],
    ]
    for token, pieces in enumerate(steps):
        usage = inference_pb2.Usage(completion_tokens=token + 1)
        outbox.push(delta(1, 0, "", [token], None, None, pieces, usage=usage))
    (frame,) = await frames(outbox)
    (event,) = frame.events
    assert [(call.index, call.id, call.name, call.arguments_json) for call in event.delta.tool_calls] == [
        (0, "id-0", "f", '{"a": 1}'),
        (1, "id-1", "g", '{"b": '),
        (2, "id-2", "f", "{}"),
    ]
    assert event.delta.usage.completion_tokens == 3  # the usage of a delta covers all that is in it


async def test_a_slow_reader_gets_frames_of_bounded_size_and_everything() -> None:
    outbox = Outbox()
    for step in range(40):
        for event_id in range(256):
            outbox.push(delta(event_id, 0, f"{step:500d}", [step], None, None))
    taken = await frames(outbox)
    assert len(taken) > 3
    assert max(frame.ByteSize() for frame in taken) < 2 << 20
    texts = {event.id: event.delta.text for frame in taken for event in frame.events}
    assert texts == {event_id: "".join(f"{step:500d}" for step in range(40)) for event_id in range(256)}


async def test_probabilities_merge_too_and_stay_within_a_frame() -> None:
    outbox = Outbox()
    rivals = [inference_pb2.TokenLogprob(token_id=i, logprob=-0.1, bytes=b"x" * 40) for i in range(20)]
    for token in range(8000):
        logprobs = inference_pb2.TokenLogprobs(logprob=-token, top=rivals)
        outbox.push(delta(1, 0, "a", [token], None, None, logprobs=logprobs))
    taken = await frames(outbox)
    assert max(frame.ByteSize() for frame in taken) < 2 << 20
    deltas = [event.delta for frame in taken for event in frame.events]
    assert [token for delta in deltas for token in delta.token_ids] == list(range(8000))
    assert [told.logprob for delta in deltas for told in delta.logprobs] == [-token for token in range(8000)]
    assert all(len(delta.token_ids) == len(delta.logprobs) for delta in deltas)


async def test_what_is_pushed_behind_a_full_frame_still_merges() -> None:
    outbox = Outbox()
    for event_id in range(3):
        outbox.push(delta(event_id, 0, "x" * (1 << 20), [0], None, None))
    reader = outbox.frames()
    assert [event.id for event in (await anext(reader)).events] == [0]
    outbox.push(delta(2, 0, "y", [1], None, None))
    outbox.push(delta(0, 0, "z", [1], None, None))
    outbox.close()
    rest = [(event.id, event.delta.text[-1]) async for frame in reader for event in frame.events]
    assert rest == [(1, "x"), (2, "y"), (0, "z")]
