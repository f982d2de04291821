"""The parts of requests: messages, tools, formats and stops, with their error messages."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from spyglass_bridge.errors import invalid
from spyglass_common.limits import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS


def _kind(key: str) -> Callable[[Any], str | None]:
    """Discriminates the members of a union by a field. Tags are enclosed in <> so that paths can omit them."""
    return lambda value: f"<{value.get(key)}>" if isinstance(value, dict) else None


def _string_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<list>" if isinstance(value, list) else None


class Object(BaseModel):
    """Base class of request objects: types are strict, and unknown fields are refused."""

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


class ImageSize(Object):
    """The size in pixels, given instead of an image that is only counted."""

    width: Annotated[int, Field(ge=1, le=1 << 20)]
    height: Annotated[int, Field(ge=1, le=1 << 20)]
    detail: Literal["auto", "low", "high"] | None = None


class CountedImagePart(Object):
    """An image to count: the image itself or its size."""

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[ImageUrl, Tag("<url>")] | Annotated[ImageSize, Tag("<size>")],
        Discriminator(lambda value: "<size>" if isinstance(value, dict) and "width" in value else "<url>"),
    ]


_PART_TYPES = Discriminator(
    _kind("type"),
    custom_error_type="unknown_part",
    custom_error_message="Each part must be an object whose type is text or image_url",
)
_TextParts = Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
_Parts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
            _PART_TYPES,
        ]
    ],
    Field(min_length=1, fail_fast=True),
]
_CountedParts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("<text>")] | Annotated[CountedImagePart, Tag("<image_url>")],
            _PART_TYPES,
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
_AnsweredContent = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")], _STRING_OR_PARTS
]
_Content = Annotated[Annotated[str, Tag("<string>")] | Annotated[_Parts, Tag("<list>")], _STRING_OR_PARTS]
_CountedContent = Annotated[Annotated[str, Tag("<string>")] | Annotated[_CountedParts, Tag("<list>")], _STRING_OR_PARTS]


class SystemMessage(Object):
    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(Object):
    role: Literal["user"]
    content: _Content


class FunctionCall(Object):
    """`arguments` is what the model wrote: a JSON object, an empty string if there were none, or a truncated object."""

    name: str
    arguments: str = ""


class ToolCall(Object):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Object):
    """`content` may be missing or empty only if there are tool calls."""

    role: Literal["assistant"]
    content: _AnsweredContent | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None


class ToolMessage(Object):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str


class CountedUserMessage(Object):
    role: Literal["user"]
    content: _CountedContent


class CountedToolMessage(Object):
    role: Literal["tool"]
    content: _CountedContent
    tool_call_id: str


_ROLES = Discriminator(
    _kind("role"),
    custom_error_type="unknown_role",
    custom_error_message="Each message must be an object whose role is system, developer, user, assistant or tool",
)
Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    _ROLES,
]
CountedMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[CountedUserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[CountedToolMessage, Tag("<tool>")],
    _ROLES,
]

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    Annotated[StopString, Tag("<string>")]
    | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), Tag("<list>")],
    Discriminator(
        _string_or_list,
        custom_error_type="unknown_stop",
        custom_error_message=f"Stop must be a string or a list of up to {MAX_STOP_STRINGS} strings",
    ),
]


class Prediction(Object):
    """The expected answer."""

    type: Literal["content"]
    content: _TextContent

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Object):
    """`continuous_usage_stats` adds the usage so far to every chunk."""

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
    """`strict` has no effect: a schema is enforced in every detail, or refused."""

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


Format = Annotated[
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


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")] | Annotated[NamedTool, Tag("<object>")],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None,
        custom_error_type="unknown_tool_choice",
        custom_error_message="The choice must be none, auto, required or an object that names a function",
    ),
]
