"""Builds a Start from a client call: options become fields, pictures are sent inline or as uploads."""

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from spyglass.v1 import chat_pb2, options_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_client.messages import ImagePart, ImageSource, Message, Role
from spyglass_client.tools import Tool
from spyglass_common.limits import MAX_INLINE_IMAGE_BYTES, MAX_START_BYTES


class Options(TypedDict, total=False):
    """How to generate; options that are absent or None are left to the server.

    `timeout_s` is how long the generation may take, in seconds. `request_id` is the caller's name for it in the
    server's log and ledger; by default the client generates one. `stop` is a string or several; `n` is the number of
    answers. `logit_bias` is by token id. With `top_logprobs`, 0 to 20, chunks and choices have the logprobs of their
    tokens and of that many alternatives; with `running_usage`, chunks have the usage so far. With `image_attention`
    they have each token's attention to the pictures, averaged over all cross-attention layers (True) or some (their
    numbers). At most one of `json_schema` (a schema, or True for any object), `regex` and `grammar` (in Lark's
    notation) constrains an answer. `tools` may be called in a conversation; `tool_choice` is "auto", "none",
    "required", or the name of the tool that must be called. `prediction` is the expected answer, for example when
    editing a text; it speeds up generation.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    min_tokens: int | None
    top_logprobs: int | None
    running_usage: bool | None
    prediction: str | None
    image_attention: Literal[True] | Sequence[int] | None
    json_schema: Mapping[str, Any] | Literal[True] | None
    regex: str | None
    grammar: str | None
    tools: Sequence[Tool] | None
    tool_choice: str | None
    parallel_tool_calls: bool | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    n: int | None
    timeout_s: float | None
    request_id: str | None


class PromptOptions(TypedDict, total=False):
    """What accompanies a question: `images` before it and a `system` prompt; or, instead of a question, a ready prompt
    as `text` or `tokens`, to which no chat template is applied."""

    images: Iterable[ImageSource]
    system: str | None
    text: str | None
    tokens: Sequence[int] | None


class QuestionOptions(PromptOptions, Options, total=False):
    """A prompt, and how to generate from it."""


@dataclass(frozen=True, slots=True)
class ImageUpload:
    """An announced image. `index` is its position among all images of the conversation."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Draft:
    """A Start whose pictures are not read yet; `load` completes it and may be called once."""

    start: pb.Start
    pictures: tuple[ImagePart, ...] = ()

    def load(self, inline_bytes: int = MAX_INLINE_IMAGE_BYTES) -> tuple[ImageUpload, ...]:
        """Reads the pictures; returns those that would bring the inline total over `inline_bytes`.

        Blocks on file reads. Raises OSError for an unreadable file, and ValueError for an empty one or a Start
        too large for a message.
        """
        slots = (
            part.image
            for message in self.start.chat.messages
            for part in message.parts
            if part.WhichOneof("kind") == "image"
        )
        uploads = []
        total_bytes = 0
        for index, (slot, picture) in enumerate(zip(slots, self.pictures, strict=True)):
            data = read_picture(picture.source)
            if total_bytes + len(data) <= inline_bytes:
                total_bytes += len(data)
                slot.data = data
            else:
                slot.announced.SetInParent()
                uploads.append(ImageUpload(index, data))
        if self.start.ByteSize() > MAX_START_BYTES:
            raise ValueError(f"the request is too large: {self.start.ByteSize():,} bytes; 4 MiB is the most")
        return tuple(uploads)


def draft_question(question: str | None, options: QuestionOptions) -> Draft:
    """Builds a Draft of a question (with pictures before it), or of a ready prompt as text or tokens."""
    system, text, tokens = options.get("system"), options.get("text"), options.get("tokens")
    others = cast("Options", {k: v for k, v in options.items() if k not in PromptOptions.__optional_keys__})
    if sum(given is not None for given in (question, text, tokens)) != 1:
        raise ValueError("give exactly one of a question, text= and tokens=")
    pictures = tuple(ImagePart(source) for source in options.get("images", ()))
    if question is not None:
        turns = [Message("user", (*pictures, question))]
        return draft_chat([Message("system", (system,)), *turns] if system is not None else turns, others)
    if pictures or system is not None or any(others.get(name) is not None for name in _OF_CHATS):
        raise ValueError("images=, system= and tools= belong to a question; a ready prompt takes none of them")
    start = _start(others)
    if text is not None:
        start.text = text
    else:
        start.tokens.ids.extend(tokens or ())
        start.tokens.SetInParent()
    return Draft(start)


def draft_chat(messages: Sequence[Message], options: Options) -> Draft:
    """Builds a Draft of a conversation, oldest message first."""
    if not messages:
        raise ValueError("a conversation needs at least one message")
    start = _start(options)
    pictures = []
    for message in messages:
        turn = start.chat.messages.add(role=_ROLES[message.role], tool_call_id=message.tool_call_id)
        for call in message.tool_calls:
            turn.tool_calls.add(id=call.id, name=call.name, arguments_json=call.arguments or "{}")
        for part in message.parts:
            if isinstance(part, ImagePart):
                turn.parts.add().image.SetInParent()
                pictures.append(part)
            else:
                turn.parts.add(text=part)
    _add_tools(start.chat, options)
    return Draft(start, tuple(pictures))


def _add_tools(chat: chat_pb2.Chat, options: Options) -> None:
    for tool in options.get("tools") or ():
        parameters = json.dumps(tool.parameters)
        chat.tools.add(name=tool.name, description=tool.description, parameters_json=parameters, strict=tool.strict)
    if (choice := options.get("tool_choice")) is not None:
        if choice in _TOOL_CHOICES:
            chat.tool_choice.mode = _TOOL_CHOICES[choice]
        else:
            chat.tool_choice.name = choice
    if (parallel := options.get("parallel_tool_calls")) is not None:
        chat.parallel_tool_calls = parallel


_ROLES: dict[Role, chat_pb2.Role.ValueType] = {
    "system": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_OF_CHATS = ("tools", "tool_choice", "parallel_tool_calls")
_TOOL_CHOICES = {
    "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
    "required": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def _start(options: Options) -> pb.Start:
    """Builds a Start without a prompt. Raises TypeError for an option that is unknown or has a wrong type."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    given = {name: value for name, value in options.items() if value is not None}
    start = pb.Start(request_id=options.get("request_id") or uuid.uuid4().hex, model=options.get("model") or "")
    for name in _SAMPLING:
        if name in given:
            setattr(start.sampling, name, given[name])
    start.sampling.logit_bias.update(options.get("logit_bias") or {})
    _shape(start.format, options)
    if "top_logprobs" in given:
        start.output.logprobs = True
        start.output.top_logprobs = options["top_logprobs"] or 0
    if (tells_usage := options.get("running_usage")) is not None:
        start.output.running_usage = tells_usage
    if (layers := options.get("image_attention")) is not None:
        start.output.image_attention.SetInParent()
        start.output.image_attention.layers.extend(() if layers is True else layers)
    start.prediction = options.get("prediction") or ""
    for name in ("max_tokens", "min_tokens", "ignore_eos"):
        if name in given:
            setattr(start.stopping, name, given[name])
    if stop := options.get("stop"):
        start.stopping.strings.extend([stop] if isinstance(stop, str) else stop)
    start.stopping.token_ids.extend(options.get("stop_token_ids") or ())
    if (n := options.get("n")) is not None:
        start.n = n
    if (timeout_s := options.get("timeout_s")) is not None:
        start.timeout.FromNanoseconds(int(timeout_s * 1e9))
    return start


def _shape(target: options_pb2.OutputFormat, options: Options) -> None:
    """Sets the constraint on an answer. Raises ValueError if there is more than one."""
    schema, regex, grammar = (options.get(name) for name in ("json_schema", "regex", "grammar"))
    if sum(given is not None for given in (schema, regex, grammar)) > 1:
        raise ValueError("an answer can be held to one of json_schema=, regex= and grammar=")
    if schema is True:
        target.json_object.SetInParent()
    elif schema is not None:
        target.json_schema.schema_json = json.dumps(schema)
    elif regex is not None:
        target.regex = str(regex)
    elif grammar is not None:
        target.grammar = str(grammar)


def read_picture(source: ImageSource) -> bytes:
    """Reads a picture's file. Raises OSError if it cannot be read and ValueError if it is empty."""
    if isinstance(source, bytes):
        name, data = "an image", source
    elif isinstance(source, str | os.PathLike):
        name, data = str(source), Path(source).read_bytes()
    else:
        name, data = "an image", source.read()
    if not data:
        raise ValueError(f"{name} is empty")
    return data
