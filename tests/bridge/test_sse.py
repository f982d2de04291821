"""Event framing and chunks hold together whatever the text is."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge import sse
from spyglass_bridge.openai.choices import ChatChoices
from spyglass_bridge.openai.serialization import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm
from spyglass_common.deltas import ChoiceDelta

STOP = pb.FINISH_REASON_STOP
RUNNING = pb.FINISH_REASON_UNSPECIFIED


@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=10),
    model=st.text(min_size=1, max_size=10),
    n=st.integers(1, 4),
    usage_form=st.sampled_from(UsageForm),
)
def test_streams_give_back_the_text(texts: list[str], model: str, n: int, usage_form: UsageForm) -> None:
    encoder = ChunkEncoder(AnswerHead.new(model, "x"), n, ChatChoices(n), usage_form)
    data = sse.frame(*encoder.begin())
    for text in texts:
        data += sse.frame(*encoder.deltas([ChoiceDelta(index=i, text=text, finish_reason=RUNNING) for i in range(n)]))
    for i in range(n):
        data += sse.frame(*encoder.deltas([ChoiceDelta(index=i, text="", finish_reason=STOP)]))
    data += sse.frame(*encoder.end(pb.Finished(usage=pb.Usage(prompt_tokens=1, completion_tokens=2)))) + sse.DONE

    frames = data.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for i in range(n):
        mine = [choice for choice in choices if choice["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "".join(texts)
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]
        assert mine[-1]["finish_reason"] == "stop"
    assert {chunk["model"] for chunk in chunks} == {model}
    assert sum(chunk.get("usage") is not None for chunk in chunks) == (usage_form is not UsageForm.NONE)


def told(token: bytes, logprob: float, *rivals: tuple[bytes, float]) -> pb.TokenLogprobs:
    top = [pb.TokenLogprob(bytes=rival, logprob=rival_logprob) for rival, rival_logprob in rivals]
    return pb.TokenLogprobs(bytes=token, logprob=logprob, top=top)


def test_probabilities_are_told_with_bytes_whether_or_not_there_is_text() -> None:
    half, rest = "é".encode()[:1], "é".encode()[1:]
    deltas = [
        ChoiceDelta(index=0, text="", finish_reason=RUNNING, logprobs=[told(half, -0.5, (half, -0.5), (b"x", -1.0))]),
        ChoiceDelta(index=0, text="é", finish_reason=STOP, logprobs=[told(rest, -math.inf), told(b"", 0.0)]),
    ]
    encoder = ChunkEncoder(AnswerHead.new("m", "x"), 1, ChatChoices(1), UsageForm.NONE)
    builder = CompletionBuilder(AnswerHead.new("m", "x"), 1, ChatChoices(1))
    builder.add(deltas)
    chunks = [json.loads(chunk) for delta in deltas for chunk in encoder.deltas([delta])]
    [whole] = builder.build(pb.Finished(usage=pb.Usage()))["choices"]
    streamed = [token for chunk in chunks for token in chunk["choices"][0]["logprobs"]["content"]]
    assert streamed == whole["logprobs"]["content"]
    assert [token["bytes"] for token in streamed] == [[0xC3], [0xA9], []]
    assert [token["logprob"] for token in streamed] == [-0.5, -9999.0, 0.0]
    assert streamed[0]["top_logprobs"] == [
        {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]},
        {"token": "x", "logprob": -1.0, "bytes": [120]},
    ]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole["message"]["content"] == "é"


def test_a_frame_of_nothing_is_empty() -> None:
    assert sse.frame() == b""
