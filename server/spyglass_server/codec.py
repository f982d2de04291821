"""Between protobuf messages and the server's own words.

Owns the validation of a Start, field by field, and the making of events. A field that is not
honoured yet is refused by name. Knows nothing of how a generation runs.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from spyglass.v1 import chat_pb2, inference_pb2, options_pb2
from spyglass_server.engine.types import FinishReason, Logprobs, SamplingParams
from spyglass_server.errors import InvalidImage, InvalidRequest, Unsupported
from spyglass_server.prompt.grammar import MAX_JSON_DEPTH, Kind, Shape, read_json_object
from spyglass_server.prompt.prepare import ChatInput, ImageSlot, Input, TextInput, TokensInput
from spyglass_server.prompt.template import Message, Tool, ToolCall
from spyglass_server.prompt.tool_calls import CallPiece

Number = TypeVar("Number", int, float)
Many = TypeVar("Many", bound=Sequence[Any])

MAX_CHUNK_BYTES = 256 << 10
MAX_TOKENS = 16384
"""The most tokens that one choice may have."""
_MAX_N = 4
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_REQUEST_ID_CHARACTERS = 128
_MAX_MESSAGES = 4096
_MAX_PARTS = 4096
_NO_PARAMETERS = '{"type": "object", "properties": {}}'
_MAX_TOOLS = 128
_MAX_TOOL_CHARACTERS = 128 << 10
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_BIASES = 1024
_MAX_BIAS = 100.0
_MAX_TOP_LOGPROBS = 20

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}
_FINISH_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: inference_pb2.FINISH_REASON_TOOL_CALLS,
}
_NOT_HONOURED = ("idempotency_key", "traceparent", "cache_salt")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How many images a conversation may hold, and how large an encoded one may be."""

    max_images: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that may be called, whether one must be, and whether several may be in one answer."""

    tools: tuple[Tool, ...]
    must_call: bool
    several: bool

    @property
    def needs_grammar(self) -> bool:
        return self.must_call or not self.several or any(tool.is_strict for tool in self.tools)


@dataclass(frozen=True, slots=True)
class Spec:
    """A validated Start. An image is its encoded bytes, or None where it is announced."""

    request_id: str
    model: str
    input: Input
    images: tuple[bytes | None, ...]
    sampling: SamplingParams
    n: int
    max_tokens: int | None
    min_tokens: int
    top_logprobs: int | None
    tells_prompt: bool
    echo: bool
    tells_usage: bool
    shape: Shape | None
    tool_use: ToolUse | None
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    timeout_s: float | None
    caller_key: str | None
    priority: int


def decode_start(start: inference_pb2.Start, limits: ImageLimits) -> Spec:
    """Validates a Start.

    Raises:
        InvalidRequest: a field is wrong, missing, or not honoured yet; the error names it.
    """
    _refuse_unsupported(start)
    tool_use = _decode_tools(start.chat)
    given, images = _decode_input(start, tool_use, limits)
    max_tokens = _optional_int(start.stopping, "max_tokens")
    return Spec(
        request_id=_request_id(start.request_id),
        model=start.model,
        input=given,
        images=images,
        sampling=_decode_sampling(start.sampling),
        n=_in_range("n", start.n if start.HasField("n") else 1, 1, _MAX_N),
        max_tokens=max_tokens,
        min_tokens=_in_range("stopping.min_tokens", start.stopping.min_tokens, 0, max_tokens or MAX_TOKENS),
        top_logprobs=_decode_logprobs(start.output),
        tells_prompt=start.output.prompt_logprobs,
        echo=start.output.echo,
        tells_usage=start.output.running_usage,
        shape=_decode_shape(start, tool_use),
        tool_use=tool_use,
        stop=_decode_stop(start.stopping.strings),
        stop_token_ids=frozenset(_at_most("stopping.token_ids", start.stopping.token_ids, _MAX_STOPS)),
        ignore_eos=start.stopping.ignore_eos,
        timeout_s=_decode_timeout(start),
        caller_key=start.caller.bearer_key if start.HasField("caller") else None,
        priority=start.priority,
    )


def _refuse_unsupported(start: inference_pb2.Start) -> None:
    fields = {field.name for field, _ in start.ListFields()}
    for name in _NOT_HONOURED:
        if name in fields:
            raise Unsupported(name)


def _decode_input(
    start: inference_pb2.Start, tool_use: ToolUse | None, limits: ImageLimits
) -> tuple[Input, tuple[bytes | None, ...]]:
    match start.WhichOneof("input"):
        case "chat":
            return _decode_chat(start.chat, tool_use.tools if tool_use else (), limits)
        case "text":
            return TextInput(start.text), ()
        case "tokens":
            return TokensInput(tuple(start.tokens.ids)), ()
        case _:
            raise InvalidRequest("one of chat, text and tokens is needed", field="chat")


def _decode_tools(chat: chat_pb2.Chat) -> ToolUse | None:
    """None where no tool may be called."""
    _at_most("chat.tools", chat.tools, _MAX_TOOLS)
    if sum(len(tool.description) + len(tool.parameters_json) for tool in chat.tools) > _MAX_TOOL_CHARACTERS:
        raise InvalidRequest(f"tools have at most {_MAX_TOOL_CHARACTERS} characters in all", field="chat.tools")
    tools = tuple(_decode_tool(tool, f"chat.tools[{i}]") for i, tool in enumerate(chat.tools))
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRequest(f"there are two tools named {name}", field=f"chat.tools[{i}].name")
    choice = chat.tool_choice
    if choice.mode not in chat_pb2.ToolChoiceMode.values():
        raise InvalidRequest("there is no such mode", field="chat.tool_choice.mode")
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_NONE or not (tools or choice.HasField("name")):
        if choice.mode == chat_pb2.TOOL_CHOICE_MODE_REQUIRED:
            raise InvalidRequest("a tool must be called, but there is none", field="chat.tool_choice.mode")
        return None
    must_call = choice.mode == chat_pb2.TOOL_CHOICE_MODE_REQUIRED
    if choice.HasField("name"):
        if choice.name not in names:
            raise InvalidRequest("there is no tool of this name", field="chat.tool_choice.name")
        return ToolUse((tools[names.index(choice.name)],), must_call=True, several=False)
    return ToolUse(tools, must_call, chat.parallel_tool_calls or not chat.HasField("parallel_tool_calls"))


def _decode_tool(tool: chat_pb2.Tool, path: str) -> Tool:
    if not _TOOL_NAME.fullmatch(tool.name):
        raise InvalidRequest(
            "a tool's name has 1 to 64 letters, digits, underscores, dots and hyphens", field=f"{path}.name"
        )
    parameters = _json_object(tool.parameters_json or _NO_PARAMETERS, f"{path}.parameters_json", "a tool's parameters")
    return Tool(tool.name, tool.description, parameters, tool.strict)


def _decode_chat(
    chat: chat_pb2.Chat, tools: tuple[Tool, ...], limits: ImageLimits
) -> tuple[ChatInput, tuple[bytes | None, ...]]:
    if not chat.messages:
        raise InvalidRequest("at least one message is needed", field="chat.messages")
    _at_most("chat.messages", chat.messages, _MAX_MESSAGES)
    if sum(len(message.parts) + len(message.tool_calls) for message in chat.messages) > _MAX_PARTS:
        raise InvalidRequest(f"a conversation has at most {_MAX_PARTS} parts and tool calls", field="chat.messages")
    messages: list[Message] = []
    images: list[bytes | None] = []
    slots: list[ImageSlot] = []
    for i, message in enumerate(chat.messages):
        path = f"chat.messages[{i}]"
        parts: list[str | None] = []
        for j, part in enumerate(message.parts):
            if part.WhichOneof("kind") == "text":
                parts.append(part.text)
                continue
            field = f"{path}.parts[{j}].image"
            images.append(_decode_image(message, part, field, limits))
            slots.append(ImageSlot(field, part.image.detail == chat_pb2.IMAGE_DETAIL_LOW))
            parts.append(None)
        messages.append(_decode_message(message, tuple(parts), path))
    if len(images) > limits.max_images:
        raise InvalidImage(
            f"the conversation holds {len(images)} images; {limits.max_images} are allowed",
            field=slots[limits.max_images].field,
        )
    return ChatInput(tuple(messages), tuple(slots), tools), tuple(images)


def _decode_message(message: chat_pb2.Message, parts: tuple[str | None, ...], path: str) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest("a role is needed: system, user, assistant or tool", field=f"{path}.role")
    if message.tool_calls and role != "assistant":
        raise InvalidRequest("only the assistant calls tools", field=f"{path}.tool_calls")
    if message.tool_call_id and role != "tool":
        raise InvalidRequest("only a tool's message answers a call", field=f"{path}.tool_call_id")
    fields = (f"{path}.tool_calls[{i}].arguments_json" for i in range(len(message.tool_calls)))
    calls = tuple(
        ToolCall(call.id, call.name, _json_object(call.arguments_json, field, "a tool call's arguments"))
        for call, field in zip(message.tool_calls, fields, strict=True)
    )
    return Message(role, parts, calls, message.tool_call_id)


def _decode_image(message: chat_pb2.Message, part: chat_pb2.Part, field: str, limits: ImageLimits) -> bytes | None:
    if message.role not in (chat_pb2.ROLE_USER, chat_pb2.ROLE_TOOL):
        raise InvalidImage("images can stand only in messages of the user or of a tool", field=field)
    if part.image.detail not in chat_pb2.ImageDetail.values():
        raise InvalidRequest("a detail is low or high", field=f"{field}.detail")
    match part.image.WhichOneof("source"):
        case "announced":
            return None
        case "data" if len(part.image.data) > limits.max_bytes:
            raise InvalidImage(f"the image is larger than {limits.max_bytes} bytes", field=field)
        case "data":
            return part.image.data
        case _:
            raise InvalidRequest("a part needs text or an image with data or announced", field=field)


def _decode_sampling(sampling: options_pb2.Sampling) -> SamplingParams:
    given = {field.name: value for field, value in sampling.ListFields()}
    top_p = _in_range("sampling.top_p", given.get("top_p", 1.0), 0.0, 1.0)
    if top_p == 0:
        raise InvalidRequest("sampling.top_p must be above 0", field="sampling.top_p")
    return SamplingParams(
        temperature=_in_range("sampling.temperature", given.get("temperature", 1.0), 0.0, 2.0),
        top_p=top_p,
        top_k=given.get("top_k", 0),
        min_p=_in_range("sampling.min_p", given.get("min_p", 0.0), 0.0, 1.0),
        seed=given.get("seed", secrets.randbits(64)),
        presence_penalty=_in_range("sampling.presence_penalty", given.get("presence_penalty", 0.0), -2.0, 2.0),
        frequency_penalty=_in_range("sampling.frequency_penalty", given.get("frequency_penalty", 0.0), -2.0, 2.0),
        repetition_penalty=_in_range("sampling.repetition_penalty", given.get("repetition_penalty", 1.0), 0.01, 5.0),
        logit_bias=_decode_bias(sampling),
    )


def _decode_bias(sampling: options_pb2.Sampling) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    biases = _at_most(field, sorted(sampling.logit_bias.items()), _MAX_BIASES)
    return tuple((token, _in_range(field, bias, -_MAX_BIAS, _MAX_BIAS)) for token, bias in biases)


def _decode_logprobs(output: options_pb2.Output) -> int | None:
    top = _in_range("output.top_logprobs", output.top_logprobs, 0, _MAX_TOP_LOGPROBS)
    if top and not output.logprobs:
        raise InvalidRequest("output.top_logprobs is only for logprobs", field="output.top_logprobs")
    if output.prompt_logprobs and not output.logprobs:
        raise InvalidRequest("output.prompt_logprobs is only for logprobs", field="output.prompt_logprobs")
    return top if output.logprobs else None


def _decode_shape(start: inference_pb2.Start, tool_use: ToolUse | None) -> Shape | None:
    given = start.format
    shape: Shape | None = None
    match given.WhichOneof("kind"):
        case "json_object":
            shape = Shape(Kind.JSON_OBJECT)
        case "json_schema":
            shape = Shape(Kind.JSON_SCHEMA, given.json_schema.schema_json)
        case "regex":
            shape = Shape(Kind.REGEX, given.regex)
        case "grammar":
            shape = Shape(Kind.LARK, given.grammar)
    if shape is not None and tool_use:
        raise InvalidRequest("format and tools do not go together, unless none may be called", field="format")
    for name in ("ignore_eos", "min_tokens"):
        if getattr(start.stopping, name) and (shape is not None or (tool_use and tool_use.needs_grammar)):
            raise InvalidRequest(
                f"stopping.{name} goes with free text only: a format says when an answer ends",
                field=f"stopping.{name}",
            )
    return shape


def _decode_stop(strings: Sequence[str]) -> tuple[str, ...]:
    for i, stop in enumerate(_at_most("stopping.strings", strings, _MAX_STOPS)):
        if not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"a stop string has 1 to {_MAX_STOP_CHARACTERS} characters", field=f"stopping.strings[{i}]"
            )
    return tuple(strings)


def _decode_timeout(start: inference_pb2.Start) -> float | None:
    if not start.HasField("timeout"):
        return None
    seconds = start.timeout.seconds + start.timeout.nanos / 1e9
    if seconds <= 0:
        raise InvalidRequest("timeout must be above 0", field="timeout")
    return seconds


def _optional_int(stopping: options_pb2.Stopping, name: str) -> int | None:
    if not stopping.HasField(name):  # type: ignore[arg-type]
        return None
    value: int = getattr(stopping, name)
    return _in_range(f"stopping.{name}", value, 1, MAX_TOKENS)


def _request_id(given: str) -> str:
    if len(given) > _MAX_REQUEST_ID_CHARACTERS or not (given.isprintable() or not given):
        raise InvalidRequest(
            f"request_id has at most {_MAX_REQUEST_ID_CHARACTERS} printable characters", field="request_id"
        )
    return given or "gen-" + secrets.token_hex(12)


def _json_object(text: str, field: str, what: str) -> dict[str, Any]:
    found = read_json_object(text)
    if found is None:
        raise InvalidRequest(f"{what} are a JSON object, at most {MAX_JSON_DEPTH} deep", field=field)
    return found


def _in_range(field: str, value: Number, low: Number, high: Number) -> Number:
    if not low <= value <= high:  # NaN is in no range
        raise InvalidRequest(f"{field} must be from {low} to {high}", field=field)
    return value


def _at_most(field: str, values: Many, count: int) -> Many:
    if len(values) > count:
        raise InvalidRequest(f"{field} holds {len(values)} entries; {count} are allowed", field=field)
    return values


# --- events ------------------------------------------------------------------------------------


def accepted(event_id: int) -> inference_pb2.Event:
    """The generation has its place in the queue."""
    return inference_pb2.Event(id=event_id, accepted=inference_pb2.Accepted())


def started(event_id: int, prompt_tokens: int, cached_tokens: int) -> inference_pb2.Event:
    """The engine has begun it."""
    return inference_pb2.Event(
        id=event_id, started=inference_pb2.Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)
    )


def prompt_echo(
    event_id: int, token_ids: Iterable[int] = (), text: str = "", logprobs: Iterable[inference_pb2.TokenLogprobs] = ()
) -> inference_pb2.Event:
    """The prompt, or probabilities of more of its tokens."""
    return inference_pb2.Event(
        id=event_id, prompt=inference_pb2.PromptEcho(token_ids=token_ids, text=text, logprobs=logprobs)
    )


def delta(
    event_id: int,
    index: int,
    text: str,
    token_ids: Iterable[int],
    finish: FinishReason | None,
    stop_string: str | None,
    calls: Iterable[CallPiece] = (),
    logprobs: inference_pb2.TokenLogprobs | None = None,
    usage: inference_pb2.Usage | None = None,
) -> inference_pb2.Event:
    """More of one choice. There is one for every token: set field by field, it takes half the time."""
    event = inference_pb2.Event(id=event_id)
    more = event.delta
    more.index = index
    more.text = text
    more.token_ids.extend(token_ids)
    if finish is not None:
        more.finish_reason = _FINISH_REASONS[finish]
    if stop_string is not None:
        more.stop_string = stop_string
    for piece in calls:
        more.tool_calls.add(index=piece.call, id=piece.id, name=piece.name, arguments_json=piece.arguments)
    if logprobs is not None:
        more.logprobs.append(logprobs)
    if usage is not None:
        more.usage.CopyFrom(usage)
    return event


def token_logprobs(token: int, found: Logprobs, bytes_of: Callable[[int], bytes]) -> inference_pb2.TokenLogprobs:
    """What is told of a token's probability."""
    return inference_pb2.TokenLogprobs(
        logprob=found.chosen,
        bytes=bytes_of(token),
        top=[
            inference_pb2.TokenLogprob(token_id=rival, logprob=logprob, bytes=bytes_of(rival))
            for rival, logprob in zip(found.top_tokens, found.top, strict=True)
        ],
    )


def finished(event_id: int, usage: inference_pb2.Usage | None, error: status_pb2.Status | None) -> inference_pb2.Event:
    """The generation is over."""
    return inference_pb2.Event(id=event_id, finished=inference_pb2.Finished(usage=usage, error=error))


def timestamp(seconds: float | None) -> Timestamp | None:
    """A time in seconds since 1970 as a protobuf message."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(int(seconds * 1e6))
    return message
