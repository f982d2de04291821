"""OpenAI's answers, in full and in chunks.

A chunk is assembled from constant text around the one string that changes, since each token has its own chunk.
"""

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from json.encoder import encode_basestring_ascii
from typing import Any, ClassVar, Literal, Protocol

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import ChoiceDelta

FINISH_REASONS: dict[int, str] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_TIMINGS: tuple[
    Literal["admission", "upload", "prepare", "queue", "encode", "prefill", "decode", "first_token", "total"], ...
] = (
    "admission",
    "upload",
    "prepare",
    "queue",
    "encode",
    "prefill",
    "decode",
    "first_token",
    "total",
)
"""The times in `Timings`."""


class UsageForm(Enum):
    """Where a stream reports its usage."""

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
    """The fields that every object of one answer repeats."""

    model: str
    id: str
    created: int

    @classmethod
    def new(cls, model: str, prefix: str) -> "AnswerHead":
        return cls(model, f"{prefix}-{uuid.uuid4().hex}", int(time.time()))


class ChoiceSerializer(Protocol):
    """Formats the choices of an answer. Each answer has its own; deltas arrive in order."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def first(self, index: int) -> dict[str, Any] | None:
        """Returns a stream's choice that precedes any text, if the format has one."""
        ...

    def chunk_template(self, index: int) -> tuple[str, str]:
        """Returns what precedes and follows the JSON string of the text in a chunk that has only text."""
        ...

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """Returns the choices for a delta with more than text; each goes into its own chunk."""
        ...

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Returns the last piece of a choice."""
        ...

    def add(self, delta: ChoiceDelta) -> None:
        """Collects more of a choice that is returned as a whole."""

    def full(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        """Returns the whole choice; called once, at its end."""
        ...


class CompletionBuilder:
    """Gathers the deltas of a generation into one object."""

    def __init__(self, head: AnswerHead, n: int, choices: ChoiceSerializer) -> None:
        self._head = head
        self._choices = choices
        self._finish_reasons: list[str | None] = [None] * n

    def add(self, deltas: Iterable[ChoiceDelta]) -> None:
        for delta in deltas:
            self._choices.add(delta)
            if delta.finish_reason:
                self._finish_reasons[delta.index] = FINISH_REASONS[delta.finish_reason]

    def build(self, finished: pb.Finished) -> dict[str, Any]:
        """Returns the answer; call it once, at the end."""
        answer = {
            "id": self._head.id,
            "object": self._choices.whole_object,
            "created": self._head.created,
            "model": self._head.model,
            "choices": [self._choices.full(index, reason) for index, reason in enumerate(self._finish_reasons)],
            "usage": usage_object(finished.usage),
        }
        if finished.HasField("timings"):
            answer["timings"] = timings_object(finished)
        return answer


class ChunkEncoder:
    """Turns a generation into the JSON texts of its chunks.

    Call `begin` once, `deltas` for each update, and `end` if the generation ended well. The last choice's finish_reason
    is held back until `end`, because the usage may have to go with it.
    """

    def __init__(self, head: AnswerHead, n: int, choices: ChoiceSerializer, usage_form: UsageForm) -> None:
        self._n = n
        self._running = n
        self._choices = choices
        self._usage_form = usage_form
        top = {"id": head.id, "object": choices.chunk_object, "created": head.created, "model": head.model}
        self._before_choices = compact_json(top)[:-1] + ',"choices":['
        self._after_choices = '],"usage":null}' if usage_form is UsageForm.EXTRA_CHUNK else "]}"
        around = [choices.chunk_template(i) for i in range(n)]
        self._around_text = [(self._before_choices + before, after + self._after_choices) for before, after in around]
        self._last_choice: dict[str, Any] | None = None
        self._last_usage: pb.Usage | None = None

    def begin(self) -> list[str]:
        """Returns the chunks that precede any text."""
        first = (self._choices.first(i) for i in range(self._n))
        return [self._chunk(choice) for choice in first if choice is not None]

    def deltas(self, deltas: Iterable[ChoiceDelta]) -> list[str]:
        chunks: list[str] = []
        for delta in deltas:
            if delta.logprobs or delta.tool_calls or delta.attention or delta.usage is not None:
                chunks += [self._chunk(choice, delta.usage) for choice in self._choices.chunks(delta)]
            elif delta.text:
                before, after = self._around_text[delta.index]
                chunks.append(before + encode_basestring_ascii(delta.text) + after)
            if delta.finish_reason:
                self._running -= 1
                choice = self._choices.last(delta.index, FINISH_REASONS[delta.finish_reason])
                if self._running:
                    chunks.append(self._chunk(choice, delta.usage))
                else:
                    self._last_choice, self._last_usage = choice, delta.usage
        return chunks

    def end(self, finished: pb.Finished) -> list[str]:
        """Returns the chunk that was held back, and the usage where requested. The last chunk has the timings."""
        chunks: list[str] = []
        if self._last_choice is not None:
            with_usage = self._usage_form is UsageForm.LAST_CHUNK
            chunks.append(self._chunk(self._last_choice, finished.usage if with_usage else self._last_usage))
        if self._usage_form is UsageForm.EXTRA_CHUNK:
            chunks.append(self._chunk(None, finished.usage))
        if finished.HasField("timings") and chunks:
            chunks[-1] = f'{chunks[-1][:-1]},"timings":{compact_json(timings_object(finished))}}}'
        return chunks

    def _chunk(self, choice: dict[str, Any] | None, usage: pb.Usage | None = None) -> str:
        choices = "" if choice is None else compact_json(choice)
        after = self._after_choices if usage is None else f'],"usage":{compact_json(usage_object(usage))}}}'
        return self._before_choices + choices + after


def timings_object(finished: pb.Finished) -> dict[str, Any]:
    """Returns where the time went, in milliseconds; a phase that the answer did not need is null."""
    timings = finished.timings
    found: dict[str, Any] = {
        f"{name}_ms": round(getattr(timings, name).ToNanoseconds() / 1e6, 3) if timings.HasField(name) else None
        for name in _TIMINGS
    }
    found["tokens_per_second"] = round(timings.tokens_per_second, 2) if timings.HasField("tokens_per_second") else None
    found["cached_tokens"] = finished.usage.cached_tokens
    return found


def usage_object(usage: pb.Usage) -> dict[str, Any]:
    """Returns OpenAI's usage with DeepInfra's estimated_cost, in US dollars."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "estimated_cost": usage.estimated_cost,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }


def usage_report(usage: pb.GetUsageResponse) -> dict[str, Any]:
    """Returns a key's usage."""
    return {
        "object": "usage",
        "key_id": usage.key_id,
        "tenant": usage.tenant,
        **_used(usage, usage.images),
        "data": [
            {"model": each.model or None, "day": each.day or None} | _used(each, each.images) for each in usage.sums
        ],
        "records": [
            {
                "request_id": record.request_id,
                "model": record.model,
                "started": record.started.ToJsonString(),
                "finished": record.finished.ToJsonString() if record.HasField("finished") else None,
                **_tokens(record.usage, record.images),
                "outcome": record.outcome,
            }
            for record in usage.records
        ],
    }


def _used(used: pb.GetUsageResponse | pb.UsageSum, images: int) -> dict[str, Any]:
    return {"generations": used.generations, **_tokens(used, images)}


def _tokens(used: pb.GetUsageResponse | pb.UsageSum | pb.Usage, images: int) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "images": images,
        "estimated_cost": used.estimated_cost,
    }


def model_object(model: pb.Model) -> dict[str, Any]:
    """Returns an entry of the list of models."""
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
            "dtype": model.dtype,
            "quantization": model.quantization or None,
            "max_images": model.max_images,
            "max_image_bytes": model.max_image_bytes,
            "tags": list(model.tags),
        },
    }


def compact_json(value: Any) -> str:
    """Serializes a value to one line of JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
