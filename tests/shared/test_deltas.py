"""Merging deltas that a slow reader has not taken."""

from hypothesis import given
from hypothesis import strategies as st

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import ChoiceDelta, PendingDeltas


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=5)), max_size=30), st.data())
def test_deltas_add_up_however_they_are_taken(deltas: list[tuple[int, str]], data: st.DataObject) -> None:
    pending = PendingDeltas()
    texts = dict.fromkeys(range(4), "")
    tokens: dict[int, list[int]] = {index: [] for index in range(4)}

    def read(taken: list[ChoiceDelta]) -> None:
        assert len({delta.index for delta in taken}) == len(taken)
        for delta in taken:
            texts[delta.index] += delta.text
            tokens[delta.index] += delta.token_ids

    for number, (index, text) in enumerate(deltas):
        pending.add(pb.Delta(index=index, text=text, token_ids=[number]))
        if data.draw(st.booleans()):
            read([pending.take()] if data.draw(st.booleans()) else pending.take_all())
    read(pending.take_all())
    assert not pending
    assert texts == {i: "".join(text for index, text in deltas if index == i) for i in range(4)}
    assert tokens == {i: [number for number, (index, _) in enumerate(deltas) if index == i] for i in range(4)}


def test_the_choice_that_has_waited_longest_is_taken_first() -> None:
    pending = PendingDeltas()
    for index in (2, 0, 2, 1):
        pending.add(pb.Delta(index=index, text="x"))
    assert [(delta.index, delta.text) for delta in (pending.take(), pending.take(), pending.take())] == [
        (2, "xx"),
        (0, "x"),
        (1, "x"),
    ]


def test_usage_never_goes_back() -> None:
    pending = PendingDeltas()
    for index, count in ((0, 1), (1, 2), (0, 3)):
        pending.add(pb.Delta(index=index, text="x", usage=pb.Usage(completion_tokens=count)))
    assert [delta.usage.completion_tokens for delta in pending.take_all() if delta.usage] == [3, 3]


def test_a_merged_delta_ends_its_choice_and_has_one_entry_for_each_call() -> None:
    pending = PendingDeltas()
    pending.add(pb.Delta(tool_calls=[pb.ToolCallDelta(index=0, id="a", name="f", arguments_json="{")]))
    pending.add(pb.Delta(tool_calls=[pb.ToolCallDelta(index=0, arguments_json="}"), pb.ToolCallDelta(index=1, id="b")]))
    pending.add(pb.Delta(finish_reason=pb.FINISH_REASON_TOOL_CALLS, logprobs=[pb.TokenLogprobs(logprob=-1)]))
    delta = pending.take()
    assert [(call.id, call.arguments_json) for call in delta.tool_calls] == [("a", "{}"), ("b", "")]
    assert delta.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert [token.logprob for token in delta.logprobs] == [-1]
