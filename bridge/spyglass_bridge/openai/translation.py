"""Translates requests of OpenAI's API into the Starts of their generations.

Decides which images travel inside a Start and which follow it. Errors that only the whole request can show are refused
here, with ApiError 400.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from spyglass.v1 import chat_pb2, options_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import ApiError, invalid
from spyglass_bridge.images import AnnouncedImage, ImageData, ImageSource, parse_image
from spyglass_bridge.openai import parts
from spyglass_bridge.openai.large_bodies import SetAside
from spyglass_bridge.openai.requests import ChatRequest, CompletionRequest
from spyglass_common.limits import MAX_INLINE_IMAGE_BYTES, MAX_START_BYTES

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_TOOL_CHOICES = {
    "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
    "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
    "required": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
}
_DETAILS = {
    None: chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
    "auto": chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
    "low": chat_pb2.IMAGE_DETAIL_LOW,
    "high": chat_pb2.IMAGE_DETAIL_HIGH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What a Start contains besides the request itself."""

    request_id: str
    caller_key: str
    timeout_s: float
    max_image_bytes: int
    idempotency_key: str | None = None
    traceparent: str = ""
    """The span of the HTTP request; empty without tracing."""
    body_digest: bytes = b""
    """Digest of the whole request, if it has an idempotency key: images are not in the Start."""
    set_aside: SetAside = field(default_factory=SetAside)
    """Long image URLs."""


@dataclass(slots=True)
class Submission:
    """A Start with the images that follow it."""

    start: pb.Start
    images: tuple[AnnouncedImage, ...] = ()

    def forget(self) -> None:
        """Drops both, which may be large, once the server has them."""
        self.start, self.images = pb.Start(), ()


@dataclass(slots=True, kw_only=True)
class _Images:
    """The images of one conversation, in reading order."""

    max_bytes: int
    set_aside: SetAside
    count: int = 0
    inline_bytes: int = 0
    announced: list[AnnouncedImage] = field(default_factory=list)

    def add(self, source: ImageSource) -> chat_pb2.Image:
        index = self.count
        self.count += 1
        if isinstance(source, ImageData) and self.inline_bytes + len(source.data) <= MAX_INLINE_IMAGE_BYTES:
            self.inline_bytes += len(source.data)
            return chat_pb2.Image(data=source.data)
        self.announced.append(AnnouncedImage(index, source))
        return chat_pb2.Image(announced=chat_pb2.Announced())


def translate_chat(request: ChatRequest, context: CallContext) -> Submission:
    """Turns a request into its Start. Raises ApiError 400 for errors that only the whole request can show."""
    images = _Images(max_bytes=context.max_image_bytes, set_aside=context.set_aside)
    start = _start(request, context)
    start.chat.CopyFrom(
        chat_pb2.Chat(
            messages=[_message(message, f"messages[{i}]", images) for i, message in enumerate(request.messages)],
            tools=[_tool(tool.function) for tool in request.tools or ()],
            tool_choice=_tool_choice(request.tool_choice),
            parallel_tool_calls=request.parallel_tool_calls,
        )
    )
    if request.prediction is not None:
        start.prediction = request.prediction.text
    if "image_attention" in (request.include or ()):
        start.output.image_attention.SetInParent()
    if "timings" in (request.include or ()):
        start.output.timings = True
    _check_size(start, "messages")
    return Submission(start, tuple(images.announced))


def translate_completions(request: CompletionRequest, context: CallContext) -> list[Submission]:
    """Turns a request into a Start for each of its prompts. Raises ApiError 400."""
    submissions = []
    for number, prompt in enumerate(request.prompts):
        start = _start(request, context)
        if number and context.idempotency_key is not None:
            start.idempotency_key = f"{number}:{context.idempotency_key}"
        if isinstance(prompt, str):
            start.text = prompt
        else:
            start.tokens.ids.extend(prompt)
        start.output.echo = bool(request.echo)
        start.output.prompt_logprobs = bool(request.echo) and request.logprobs is not None
        _check_size(start, "prompt")
        submissions.append(Submission(start))
    return submissions


def _start(request: ChatRequest | CompletionRequest, context: CallContext) -> pb.Start:
    """Builds everything but the prompt."""
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only for a stream.", "stream_options")
    top = request.top_probabilities
    start = pb.Start(
        request_id=context.request_id,
        model=request.model,
        format=_format(request.response_format),
        sampling=_sampling(request),
        stopping=_stopping(request),
        output=options_pb2.Output(
            logprobs=top is not None, top_logprobs=top, running_usage=request.continuous_usage or None
        ),
        n=request.n,
        caller=pb.Caller(bearer_key=context.caller_key),
    )
    start.timeout.FromNanoseconds(int(context.timeout_s * 1e9))
    if context.traceparent:
        start.traceparent = context.traceparent
    if context.idempotency_key is not None:
        start.idempotency_key, start.idempotency_digest = context.idempotency_key, context.body_digest
    return start


def _check_size(start: pb.Start, param: str) -> None:
    if start.ByteSize() > MAX_START_BYTES:
        message = (
            f"This model's maximum context length is smaller than that: the {param} take {start.ByteSize()} bytes."
        )
        raise ApiError(400, message, code="context_length_exceeded", param=param)


def _tool(function: parts.FunctionDefinition) -> chat_pb2.Tool:
    parameters = "" if function.parameters is None else _json(function.parameters)
    return chat_pb2.Tool(
        name=function.name,
        description=function.description or "",
        parameters_json=parameters,
        strict=bool(function.strict),
    )


def _tool_choice(given: str | parts.NamedTool | None) -> chat_pb2.ToolChoice | None:
    if isinstance(given, parts.NamedTool):
        return chat_pb2.ToolChoice(name=given.function.name)
    return None if given is None else chat_pb2.ToolChoice(mode=_TOOL_CHOICES[given])


def _message(message: parts.CountedMessage | parts.Message, path: str, images: _Images) -> chat_pb2.Message:
    result = chat_pb2.Message(role=_ROLES[message.role])
    if isinstance(message, parts.ToolMessage | parts.CountedToolMessage):
        result.tool_call_id = message.tool_call_id
    if isinstance(message, parts.AssistantMessage):
        if message.content in (None, []) and not message.tool_calls:
            raise invalid("An assistant's message without tool calls needs content.", f"{path}.content")
        for call in message.tool_calls or ():
            result.tool_calls.add(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
    if message.content is not None:
        result.parts.extend(_parts(message.content, f"{path}.content", images))
    return result


def _parts(
    content: str | Sequence[parts.TextPart | parts.ImagePart | parts.CountedImagePart], path: str, images: _Images
) -> Iterator[chat_pb2.Part]:
    if isinstance(content, str):
        yield chat_pb2.Part(text=content)
        return
    for index, part in enumerate(content):
        if isinstance(part, parts.TextPart):
            yield chat_pb2.Part(text=part.text)
            continue
        if isinstance(part.image_url, parts.ImageSize):
            size = chat_pb2.ImageSize(width=part.image_url.width, height=part.image_url.height)
            image = chat_pb2.Image(size=size)
        else:
            url = part.image_url.url
            source = parse_image(url, f"{path}[{index}].image_url.url", images.max_bytes, images.set_aside.find(url))
            image = images.add(source)
        image.detail = _DETAILS[part.image_url.detail]
        yield chat_pb2.Part(image=image)


def _sampling(request: ChatRequest | CompletionRequest) -> options_pb2.Sampling:
    # A negative seed keeps its bits: 64-bit two's complement.
    seed = None if request.seed is None else request.seed % 2**64
    return options_pb2.Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
    )


def _format(
    given: parts.TextFormat | parts.JsonObjectFormat | parts.JsonSchemaFormat | parts.RegexFormat | None,
) -> options_pb2.OutputFormat:
    match given:
        case parts.JsonObjectFormat():
            return options_pb2.OutputFormat(json_object=options_pb2.JsonObjectFormat())
        case parts.JsonSchemaFormat(json_schema=schema):
            text = _json(schema.schema_)
            found = options_pb2.JsonSchemaFormat(name=schema.name, schema_json=text, strict=bool(schema.strict))
            return options_pb2.OutputFormat(json_schema=found)
        case parts.RegexFormat(regex=regex):
            return options_pb2.OutputFormat(regex=regex)
        case _:
            return options_pb2.OutputFormat(text=options_pb2.TextFormat())


def _stopping(request: ChatRequest | CompletionRequest) -> options_pb2.Stopping:
    strings = [request.stop] if isinstance(request.stop, str) else request.stop
    return options_pb2.Stopping(max_tokens=request.most_tokens, min_tokens=request.min_tokens, strings=strings)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
