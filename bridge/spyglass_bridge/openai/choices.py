"""The JSON of choices, for chat completions and for completions."""

import codecs
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import ChoiceDelta

_MIN_LOGPROB = -9999.0
"""OpenAI's documented value for a very unlikely token. JSON has no minus infinity."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """Everything received of one choice."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    calls: list[tuple[pb.ToolCallDelta, list[str]]] = field(default_factory=list)
    attention: list[pb.TokenAttention] = field(default_factory=list)
    image_grids: Sequence[pb.ImageGrid] = ()

    def add(self, delta: ChoiceDelta) -> None:
        self.texts.append(delta.text)
        self.logprobs += delta.logprobs
        self.attention += delta.attention
        self.image_grids = delta.image_grids
        for call in delta.tool_calls:
            if call.id:
                self.calls.append((call, []))
            self.calls[call.index][1].append(call.arguments_json)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class ChatChoices:
    """Choices of chat.completion and chat.completion.chunk."""

    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, n: int) -> None:
        self._kept = [_Kept() for _ in range(n)]

    def first(self, index: int) -> dict[str, Any]:
        """Returns the choice that carries the role."""
        return self._choice(index, {"role": "assistant", "content": ""})

    def chunk_template(self, index: int) -> tuple[str, str]:
        return f'{{"index":{index},"delta":{{"content":', '},"finish_reason":null,"logprobs":null}'

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """As in OpenAI's API, a chunk has one call; logprobs go with the first."""
        first: dict[str, Any] = {"content": delta.text} if delta.text or not delta.tool_calls else {}
        pieces: list[dict[str, Any]] = [{"tool_calls": [_call_piece(call)]} for call in delta.tool_calls] or [{}]
        choices = [self._choice(delta.index, piece) for piece in pieces]
        choices[0]["delta"] = first | pieces[0]
        choices[0]["logprobs"] = _chat_logprobs(delta.logprobs)
        choices[0] |= _image_attention(delta.attention, delta.image_grids)
        return choices

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return self._choice(index, {}, finish_reason)

    def add(self, delta: ChoiceDelta) -> None:
        self._kept[delta.index].add(delta)

    def full(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        kept = self._kept[index]
        message: dict[str, Any] = {"role": "assistant", "content": kept.text, "refusal": None}
        if kept.calls:
            message["content"] = kept.text or None
            message["tool_calls"] = [_call(call.id, call.name, "".join(arguments)) for call, arguments in kept.calls]
        return {
            "index": index,
            "message": message,
            "finish_reason": finish_reason,
            "logprobs": _chat_logprobs(kept.logprobs),
            **_image_attention(kept.attention, kept.image_grids),
        }

    def _choice(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


class TextChoices:
    """Choices of text_completion."""

    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def __init__(self, n: int, begins_with_prompt: bool) -> None:
        """`begins_with_prompt`: a choice's first token has no logprob."""
        self._kept = [_Kept() for _ in range(n)]
        self._tokens = [_TextTokens(begins_with_prompt) for _ in range(n)]

    def first(self, index: int) -> None:
        return None

    def chunk_template(self, index: int) -> tuple[str, str]:
        return f'{{"index":{index},"text":', ',"finish_reason":null,"logprobs":null}'

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        return [self._choice(delta.index, delta.text, None, delta.logprobs)]

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return self._choice(index, "", finish_reason, [])

    def add(self, delta: ChoiceDelta) -> None:
        self._kept[delta.index].add(delta)

    def full(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        kept = self._kept[index]
        return self._choice(index, kept.text, finish_reason, kept.logprobs)

    def _choice(
        self, index: int, text: str, finish_reason: str | None, logprobs: list[pb.TokenLogprobs]
    ) -> dict[str, Any]:
        found = self._tokens[index].add(logprobs) if logprobs else None
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": found}


class _TextTokens:
    """The logprobs of one choice of a text_completion, and the offsets of its tokens in the text."""

    def __init__(self, begins_with_prompt: bool) -> None:
        self._nothing_before = begins_with_prompt
        self._offset = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def add(self, tokens: list[pb.TokenLogprobs]) -> dict[str, Any]:
        result: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            result["tokens"].append(text_of(token.bytes))
            result["token_logprobs"].append(None if self._nothing_before else finite(token.logprob))
            result["top_logprobs"].append(
                {text_of(rival.bytes): finite(rival.logprob) for rival in token.top} if token.top else None
            )
            result["text_offset"].append(self._offset)
            self._offset += len(self._decode(token.bytes))
            self._nothing_before = False
        return result


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_piece(call: pb.ToolCallDelta) -> dict[str, Any]:
    """Returns a piece of a call; only the first piece names the function."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments_json}}
    return {"index": call.index, **_call(call.id, call.name, call.arguments_json)}


def _chat_logprobs(tokens: list[pb.TokenLogprobs]) -> dict[str, Any] | None:
    return {"content": [_chat_token(token) for token in tokens], "refusal": None} if tokens else None


def _image_attention(tokens: Sequence[pb.TokenAttention], grids: Sequence[pb.ImageGrid]) -> dict[str, Any]:
    """Returns the field that shows where the model looked, if requested."""
    if not tokens:
        return {}
    images = [
        {
            "rows": grid.rows,
            "columns": grid.columns,
            "covered_rows": round(grid.covered_rows, 3),
            "covered_columns": round(grid.covered_columns, 3),
        }
        for grid in grids
    ]
    told = [{"token": text_of(one.bytes), "maps": [_image_map(each) for each in one.maps]} for one in tokens]
    return {"image_attention": {"images": images, "tokens": told}}


def _image_map(given: pb.ImageMap) -> dict[str, Any] | None:
    return {"scale": given.scale, "data": b64encode(given.data).decode()} if given.data else None


def _chat_token(token: pb.TokenLogprobs) -> dict[str, Any]:
    """Returns a token with its logprob and those of its alternatives."""
    rivals = [_probability(rival.bytes, rival.logprob) for rival in token.top]
    return {**_probability(token.bytes, token.logprob), "top_logprobs": rivals}


def _probability(token: bytes, logprob: float) -> dict[str, Any]:
    """Bytes that do not form whole characters are exact only in `bytes`."""
    return {"token": text_of(token), "logprob": finite(logprob), "bytes": list(token)}


def text_of(token: bytes) -> str:
    """Returns a token's bytes as text; incomplete characters become replacement characters."""
    return token.decode("utf-8", "replace")


def finite(logprob: float) -> float:
    """Returns a log probability that JSON can represent."""
    return max(logprob, _MIN_LOGPROB)
