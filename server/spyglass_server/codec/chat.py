"""Decodes and validates a conversation: messages with their images, and the tools that may be called."""

import re
from dataclasses import dataclass
from typing import Any

from spyglass.v1 import chat_pb2
from spyglass_common.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOL_CHARACTERS, MAX_TOOLS
from spyglass_server.codec.checks import at_most
from spyglass_server.errors import InvalidImage, InvalidRequest
from spyglass_server.json_object import MAX_JSON_DEPTH, read_json_object
from spyglass_server.prompt.conversation import Message, RawJson, Tool, ToolCall
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot

_NO_PARAMETERS = '{"type": "object", "properties": {}}'
_MAX_SIDE = 1 << 20
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How many images a conversation may hold, and how large an encoded one may be."""

    max_images: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size, in pixels, that replaces an image whose tokens are only counted."""

    width: int
    height: int


GivenImage = bytes | ImageSize | None
"""An image's encoded bytes; its size, if that is enough; or None if it is announced."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that may be called, whether one must be, and whether several may be in one answer."""

    tools: tuple[Tool, ...]
    must_call: bool
    several: bool

    @property
    def needs_grammar(self) -> bool:
        return self.must_call or not self.several or any(tool.is_strict for tool in self.tools)


def decode_tools(chat: chat_pb2.Chat) -> ToolUse | None:
    """Returns None if no tool may be called."""
    at_most("chat.tools", chat.tools, MAX_TOOLS)
    if sum(len(tool.description) + len(tool.parameters_json) for tool in chat.tools) > MAX_TOOL_CHARACTERS:
        raise InvalidRequest(f"tools have at most {MAX_TOOL_CHARACTERS} characters in all", field="chat.tools")
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
    field = f"{path}.parameters_json"
    parameters = read_json_object(tool.parameters_json or _NO_PARAMETERS)
    if parameters is None:
        raise InvalidRequest(f"a tool's parameters are a JSON object, at most {MAX_JSON_DEPTH} deep", field=field)
    if parameters.get("type", "object") != "object":
        raise InvalidRequest("a tool's parameters are the schema of an object", field=field)
    return Tool(tool.name, tool.description, parameters, is_strict=tool.strict)


def decode_chat(
    chat: chat_pb2.Chat, tools: tuple[Tool, ...], limits: ImageLimits
) -> tuple[ChatInput, tuple[GivenImage, ...]]:
    if not chat.messages:
        raise InvalidRequest("at least one message is needed", field="chat.messages")
    at_most("chat.messages", chat.messages, MAX_MESSAGES)
    if sum(len(message.parts) + len(message.tool_calls) for message in chat.messages) > MAX_PARTS:
        raise InvalidRequest(f"a conversation has at most {MAX_PARTS} parts and tool calls", field="chat.messages")
    messages: list[Message] = []
    images: list[GivenImage] = []
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
    calls = tuple(ToolCall(call.id, call.name, _arguments(call.arguments_json)) for call in message.tool_calls)
    return Message(role, parts, tool_calls=calls, tool_call_id=message.tool_call_id)


def _decode_image(message: chat_pb2.Message, part: chat_pb2.Part, field: str, limits: ImageLimits) -> GivenImage:
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
        case "size" if 0 < part.image.size.width <= _MAX_SIDE and 0 < part.image.size.height <= _MAX_SIDE:
            return ImageSize(part.image.size.width, part.image.size.height)
        case "size":
            raise InvalidImage(f"width and height of an image are 1 to {_MAX_SIDE} pixels", field=f"{field}.size")
        case _:
            raise InvalidRequest("a part needs text or an image with data or announced", field=field)


def _arguments(text: str) -> dict[str, Any] | RawJson:
    """Decodes the arguments of a call in the history: what the model wrote, which max_tokens may have cut off."""
    if not text.strip():
        return {}
    found = read_json_object(text)
    return RawJson(text) if found is None else found
