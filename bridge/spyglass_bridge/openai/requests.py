"""The requests of the completions APIs, as far as they are honoured.

Owns types, ranges and the wording of refusals. A parameter is honoured by a field here; one that
OpenAI's API has and this server does not honour yet stands in a table, and is refused by its name
unless its value changes nothing. Knows nothing of the protocol behind.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import from_json

from spyglass_bridge.errors import ApiError, invalid, unsupported

# Parameters not honoured yet, each with the values that ask for nothing.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
# Labels by which a caller sorts its own requests at OpenAI. Clients send them as a matter of course;
# they have no effect on an answer there either, and none here.
LABELS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
# A participant's name: chat templates have no place for it.
_MESSAGE_LABELS = frozenset({"name"})

# What an answer of this API holds beside role, content and tool calls when it is sent back as a message.
_NEUTRAL_MESSAGE_VALUES: Mapping[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "reasoning_content": (None,),
    "refusal": (None,),
}
_NEUTRAL_STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "include_obfuscation": (None, False),
}

_MAX_FIELDS = 100
_MAX_MESSAGES = 4096
_MAX_VALUES = 200_000
"""JSON values in a body, at most: more than any context has room for, and few enough to read quickly."""
_MAX_TOKENS = 16384
_MAX_BIASES = 1024
_MAX_PROMPTS = 32
_MAX_TOKEN_IDS = 131_072
_MAX_TOLD = 65_536
"""Tokens or characters of prompts whose probabilities are told: each takes up to two kilobytes of an answer."""


def _kind(key: str) -> Callable[[Any], str | None]:
    """Tells the members of a union apart by a field. Tags stand in <> so that paths can leave them out."""
    return lambda value: f"<{value.get(key)}>" if isinstance(value, dict) else None


def _string_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<list>" if isinstance(value, list) else None


class Object(BaseModel):
    """What a request may hold: types are strict, and there is nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(Object):
    type: Literal["text"]
    text: str


class ImageUrl(Object):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Object):
    type: Literal["image_url"]
    image_url: ImageUrl


_TextParts = Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
_Parts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
            Discriminator(
                _kind("type"),
                custom_error_type="unknown_part",
                custom_error_message="Each part must be an object whose type is text or image_url",
            ),
        ]
    ],
    Field(min_length=1, fail_fast=True),
]
_STRING_OR_PARTS = Discriminator(
    _string_or_list,
    custom_error_type="unknown_content",
    custom_error_message="Content must be a string or a list of parts",
)
_TextContent = Annotated[Annotated[str, Tag("<string>")] | Annotated[_TextParts, Tag("<list>")], _STRING_OR_PARTS]
_Content = Annotated[Annotated[str, Tag("<string>")] | Annotated[_Parts, Tag("<list>")], _STRING_OR_PARTS]


class SystemMessage(Object):
    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(Object):
    role: Literal["user"]
    content: _Content


class FunctionCall(Object):
    name: str
    arguments: str


class ToolCall(Object):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Object):
    """`content` may be missing only beside tool calls."""

    role: Literal["assistant"]
    content: _TextContent | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None


class ToolMessage(Object):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(
        _kind("role"),
        custom_error_type="unknown_role",
        custom_error_message="Each message must be an object whose role is system, developer, user, assistant or tool",
    ),
]

_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_Stop = Annotated[
    Annotated[_StopString, Tag("<string>")]
    | Annotated[list[_StopString], Field(max_length=16, fail_fast=True), Tag("<list>")],
    Discriminator(
        _string_or_list,
        custom_error_type="unknown_stop",
        custom_error_message="Stop must be a string or a list of up to 16 strings",
    ),
]


class StreamOptions(Object):
    """`continuous_usage_stats` tells the usage so far in every chunk too."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.continuous_usage_stats and self.include_usage is False:
            raise invalid(
                "continuous_usage_stats is only for a stream with usage.", "stream_options.continuous_usage_stats"
            )
        return self


class TextFormat(Object):
    type: Literal["text"]


class JsonObjectFormat(Object):
    type: Literal["json_object"]


class JsonSchema(Object):
    """`strict` changes nothing: a schema holds in every detail, or is refused."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Object):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Object):
    type: Literal["regex"]
    regex: str


_Format = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")]
    | Annotated[RegexFormat, Tag("<regex>")],
    Discriminator(
        _kind("type"),
        custom_error_type="unknown_format",
        custom_error_message="The format must be an object whose type is text, json_object, json_schema or regex",
    ),
]


class FunctionDefinition(Object):
    """`parameters` is a JSON schema of an object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Object):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Object):
    name: str


class NamedTool(Object):
    type: Literal["function"]
    function: FunctionName


_ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")] | Annotated[NamedTool, Tag("<object>")],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None,
        custom_error_type="unknown_tool_choice",
        custom_error_message="The choice must be none, auto, required or an object that names a function",
    ),
]
_ModelName = Annotated[str, Field(min_length=1, max_length=256)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_TokenId = Annotated[int, Field(ge=0, lt=2**32, strict=False)]
"""Of a token; JSON's objects have them as strings."""


class _Sampling(Object):
    """How tokens are chosen, and what shape they must have, in any form of request. None means the default."""

    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=999)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=5)] | None = None
    response_format: _Format | None = None


class _Request(_Sampling):
    """What chat completions and completions have in common."""

    model: _ModelName
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=4)] | None = None
    logit_bias: (
        Annotated[dict[_TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=_MAX_BIASES)] | None
    ) = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    stop: _Stop | None = None

    @property
    def include_usage(self) -> bool | None:
        return self.stream_options.include_usage if self.stream_options else None

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def top_probabilities(self) -> int | None:
        """How many of the most probable tokens are told beside each; None where nothing is told."""
        return None


class ChatRequest(_Request):
    """A chat completion that is asked for."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def top_probabilities(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens and max_completion_tokens differ.", "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs is only for logprobs.", "top_logprobs")
        return self


_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, fail_fast=True)]


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if not isinstance(value, list) or not value:
        return None
    if isinstance(value[0], str):
        return "<strings>"
    return "<lists>" if isinstance(value[0], list) else "<tokens>"


_Prompt = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[_Tokens, Tag("<tokens>")]
    | Annotated[list[str], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("<strings>")]
    | Annotated[list[_Tokens], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("<lists>")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="unknown_prompt",
        custom_error_message=f"The prompt must be a string, tokens, or a list of up to {_MAX_PROMPTS} of these",
    ),
]


class CompletionRequest(_Request):
    """A completion that is asked for, of one ready prompt or of several."""

    prompt: _Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.echo and self.logprobs is not None:
            if (self.n or 1) > 1:
                raise invalid("With echo and logprobs there is one choice of each prompt.", "n")
            if sum(map(len, self.prompts)) > _MAX_TOLD:
                raise invalid(f"With echo and logprobs the prompts are at most {_MAX_TOLD} long in all.", "prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def top_probabilities(self) -> int | None:
        return self.logprobs


class NativeRequest(_Sampling):
    """A ready prompt to continue, in DeepInfra's own form."""

    input: str
    max_new_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    stop: Annotated[list[_StopString], Field(max_length=16, fail_fast=True)] | None = None
    num_responses: Annotated[int, Field(ge=1, le=4)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream and (self.num_responses or 1) > 1:
            raise invalid("A stream has one response.", "num_responses")
        return self

    def as_completion(self, model: str) -> CompletionRequest:
        """The same in OpenAI's form; the events of a stream tell the probability of each token."""
        same = {name: value for name, value in self if name in CompletionRequest.model_fields}
        return CompletionRequest.model_construct(
            **same,
            model=model,
            prompt=self.input,
            max_tokens=self.max_new_tokens,
            n=self.num_responses,
            logprobs=0 if self.stream else None,
            stream_options=None,
        )


class TokenizeRequest(Object):
    """What to tell the tokens of: a ready prompt, or a conversation with its tools."""

    model: _ModelName
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("One of prompt and messages is needed.", "prompt")
        if self.tools and self.messages is None:
            raise invalid("tools go with messages.", "tools")
        return self

    def as_completion(self) -> ChatRequest | CompletionRequest:
        """The request whose prompt is to be told."""
        if self.messages is None:
            return CompletionRequest.model_validate({"model": self.model, "prompt": self.prompt})
        return ChatRequest.model_construct(model=self.model, messages=self.messages, tools=self.tools)


class DetokenizeRequest(Object):
    """Which tokens to tell the text of."""

    model: _ModelName
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=_MAX_TOKEN_IDS, fail_fast=True)]


_Given = TypeVar("_Given", bound=Object)


def parse(body: bytes, kind: type[_Given]) -> _Given:
    """Reads the JSON of a request; of duplicate keys the last one counts. Raises ApiError 400."""
    if sum(map(body.count, (b",", b"{", b"["))) > _MAX_VALUES:
        raise invalid("The body holds too many values.")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    try:
        return kind.model_validate(_without_neutral(value, kind.model_fields))
    except ValidationError as error:
        raise _refusal(error) from None


def _without_neutral(body: dict[str, Any], honoured: Collection[str]) -> dict[str, Any]:
    """Leaves out what changes nothing, in the request and in its messages and stream options."""
    neutral_values = {key: values for key, values in NEUTRAL_VALUES.items() if key not in honoured}
    result = {key: value for key, value in _checked(body, neutral_values, "").items() if key not in LABELS}
    if isinstance(messages := result.get("messages"), list):
        if len(messages) > _MAX_MESSAGES:
            raise invalid(f"A conversation has at most {_MAX_MESSAGES} messages.", "messages")
        result["messages"] = [_message(message, f"messages[{index}].") for index, message in enumerate(messages)]
    if "stream_options" in result:
        result["stream_options"] = _checked(result["stream_options"], _NEUTRAL_STREAM_OPTIONS, "stream_options.")
    return result


def _message(value: Any, prefix: str) -> Any:
    found = _checked(value, _NEUTRAL_MESSAGE_VALUES, prefix)
    return (
        {key: item for key, item in found.items() if key not in _MESSAGE_LABELS} if isinstance(found, dict) else found
    )


def _checked(value: Any, neutral_values: Mapping[str, tuple[Any, ...]], prefix: str) -> Any:
    """Takes the fields of a table out of an object; refuses one that asks for something."""
    if not isinstance(value, dict):
        return value
    if len(value) > _MAX_FIELDS:
        raise invalid(f"An object of a request may have at most {_MAX_FIELDS} fields.", prefix.rstrip(".") or None)
    for key in value.keys() & neutral_values.keys():
        if not any(_same(value[key], neutral) for neutral in neutral_values[key]):
            raise unsupported(prefix + key)
    return {key: item for key, item in value.items() if key not in neutral_values}


def _same(value: Any, neutral: Any) -> bool:
    """Equality as JSON has it: 0 is 0.0, but false is not 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        # The caller chose this name, so it may look like a tag.
        param = _path((*_without_tags(location[:-1]), location[-1]))
        return ApiError(400, f"Unknown parameter: {param}.", code="unknown_parameter", param=param)
    param = _path(_without_tags(location))
    if first["type"] == "missing":
        return invalid(f"Missing parameter: {param}.", param)
    return invalid(f"{param}: {first['msg']}.", param)


def _without_tags(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(step for step in location if isinstance(step, int) or not step.startswith("<"))


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` for ("messages", 0, "content")."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.removeprefix(".")[:256]
