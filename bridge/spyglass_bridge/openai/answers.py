"""OpenAI's answers: chat.completion and chat.completion.chunk objects.

Owns their JSON. A chunk is put together from constant text around the one string that changes, since
one is made for each token. Knows nothing of HTTP or SSE.
"""

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.generation import ChoiceDelta

_FINISH_REASONS: dict[int, str] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


_LEAST_LOGPROB = -9999.0
"""What OpenAI's documentation has for a token that is very unlikely."""


class UsageForm(Enum):
    """Where a stream tells its usage."""

    EXTRA_CHUNK = "in a chunk of its own, as OpenAI does when asked"
    LAST_CHUNK = "in the chunk with the last finish_reason, as DeepInfra does"
    NONE = "nowhere"

    @classmethod
    def of(cls, include_usage: bool | None) -> "UsageForm":
        if include_usage is None:
            return cls.LAST_CHUNK
        return cls.EXTRA_CHUNK if include_usage else cls.NONE


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every object of one answer repeats."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(slots=True)
class _Whole:
    """All that has come of one choice."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: ChoiceDelta) -> None:
        self.texts.append(delta.text)
        self.logprobs += map(_token_object, delta.logprobs)
        for call in delta.tool_calls:
            if call.id:
                self.calls.append({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": []}})
            self.calls[call.index]["function"]["arguments"].append(call.arguments_json)
        if delta.finish_reason:
            self.finish_reason = _FINISH_REASONS[delta.finish_reason]

    @property
    def message(self) -> dict[str, Any]:
        content = "".join(self.texts)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            for call in self.calls:
                call["function"]["arguments"] = "".join(call["function"]["arguments"])
            message |= {"content": content or None, "tool_calls": self.calls}
        return message


class CompletionBuilder:
    """Gathers the deltas of a generation into one chat.completion."""

    def __init__(self, head: AnswerHead, n: int) -> None:
        self._head = head
        self._choices = [_Whole() for _ in range(n)]

    def add(self, deltas: Iterable[ChoiceDelta]) -> None:
        for delta in deltas:
            self._choices[delta.index].add(delta)

    def build(self, usage: pb.Usage) -> dict[str, Any]:
        """The answer; once, at its end."""
        return {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [
                {
                    "index": index,
                    "message": choice.message,
                    "finish_reason": choice.finish_reason,
                    "logprobs": {"content": choice.logprobs, "refusal": None} if choice.logprobs else None,
                }
                for index, choice in enumerate(self._choices)
            ],
            "usage": usage_object(usage),
        }


class ChunkEncoder:
    """Turns a generation into the JSON texts of its chunks.

    Call `begin` once, `deltas` for each update, and `end` when it ended well. The finish_reason of the
    last choice is held until `end`, because the usage may have to go with it.
    """

    def __init__(self, head: AnswerHead, n: int, usage_form: UsageForm) -> None:
        self._n = n
        self._running = n
        self._usage_form = usage_form
        top = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model}
        self._before_choices = compact_json(top)[:-1] + ',"choices":['
        self._after_choices = '],"usage":null}' if usage_form is UsageForm.EXTRA_CHUNK else "]}"
        self._before_text = [f'{self._before_choices}{{"index":{i},"delta":{{"content":' for i in range(n)]
        self._after_text = '},"finish_reason":null,"logprobs":null}' + self._after_choices
        self._last_choice: dict[str, Any] | None = None

    def begin(self) -> list[str]:
        """The chunks that tell the role, one for each choice."""
        return [self._chunk(_choice(i, {"role": "assistant", "content": ""}, None)) for i in range(self._n)]

    def deltas(self, deltas: Iterable[ChoiceDelta]) -> list[str]:
        chunks: list[str] = []
        for delta in deltas:
            if delta.logprobs or delta.tool_calls:
                chunks.append(self._chunk(_full_choice(delta)))
            elif delta.text:
                chunks.append(self._before_text[delta.index] + json.dumps(delta.text) + self._after_text)
            if delta.finish_reason:
                self._running -= 1
                choice = _choice(delta.index, {}, _FINISH_REASONS[delta.finish_reason])
                if self._running:
                    chunks.append(self._chunk(choice))
                else:
                    self._last_choice = choice
        return chunks

    def end(self, usage: pb.Usage) -> list[str]:
        """The chunk that was held back, and the usage where it was asked to be."""
        chunks: list[str] = []
        if self._last_choice is not None:
            with_usage = self._usage_form is UsageForm.LAST_CHUNK
            chunks.append(self._chunk(self._last_choice, usage if with_usage else None))
        if self._usage_form is UsageForm.EXTRA_CHUNK:
            chunks.append(self._chunk(None, usage))
        return chunks

    def _chunk(self, choice: dict[str, Any] | None, usage: pb.Usage | None = None) -> str:
        choices = "" if choice is None else compact_json(choice)
        after = self._after_choices if usage is None else f'],"usage":{compact_json(usage_object(usage))}}}'
        return self._before_choices + choices + after


def usage_object(usage: pb.Usage) -> dict[str, Any]:
    """OpenAI's usage with DeepInfra's estimated_cost, in US dollars."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "estimated_cost": usage.estimated_cost,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def model_object(model: pb.Model) -> dict[str, Any]:
    """An entry of the list of models."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created.seconds,
        "owned_by": "spyglass",
        "root": model.id,
        "parent": None,
        "metadata": {
            "description": model.description,
            "context_length": model.context_length,
            "max_tokens": model.max_tokens,
            "pricing": {
                "input_tokens": model.pricing.input_tokens,
                "output_tokens": model.pricing.output_tokens,
                "cached_input_tokens": model.pricing.cached_input_tokens,
            },
            "tags": list(model.tags),
        },
    }


def compact_json(value: Any) -> str:
    """JSON on one line without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _choice(
    index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}


def _full_choice(delta: ChoiceDelta) -> dict[str, Any]:
    """A choice of a chunk that holds more than text."""
    logprobs = {"content": [_token_object(token) for token in delta.logprobs], "refusal": None}
    said: dict[str, Any] = {"content": delta.text} if delta.text or not delta.tool_calls else {}
    if delta.tool_calls:
        said["tool_calls"] = [_call_object(call) for call in delta.tool_calls]
    return _choice(delta.index, said, None, logprobs if delta.logprobs else None)


def _call_object(call: pb.ToolCallDelta) -> dict[str, Any]:
    """More of a call; the first piece says which function it is of."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments_json}}
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _token_object(token: pb.TokenLogprobs) -> dict[str, Any]:
    """A token with its probability, and those of its rivals."""
    rivals = [_logprob_object(rival.bytes, rival.logprob) for rival in token.top]
    return {**_logprob_object(token.bytes, token.logprob), "top_logprobs": rivals}


def _logprob_object(token: bytes, logprob: float) -> dict[str, Any]:
    """Bytes that are no whole characters are found in `bytes` only. Minus infinity is no JSON."""
    return {"token": token.decode("utf-8", "replace"), "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(token)}
