"""Conversations from which prompts are made: messages with text and images, tools and tool calls."""

from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]
    _: KW_ONLY
    is_strict: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """The definition that templates show to models."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class RawJson(str):
    """JSON as the model wrote it, truncated or otherwise not an object; a template's `tojson` writes it unchanged."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made."""

    id: str
    name: str
    arguments: dict[str, Any] | RawJson


@dataclass(frozen=True, slots=True)
class Message:
    """A turn; a part is text, or None for an image."""

    role: str
    parts: tuple[str | None, ...]
    _: KW_ONLY
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
