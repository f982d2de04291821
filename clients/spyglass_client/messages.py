"""Conversations as plain values: `system("…"), user("…", image("cat.png")), assistant("…"), tool(call, "…")`."""

import os
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol

from spyglass_client.tools import ToolCall

Role = Literal["system", "user", "assistant", "tool"]


class Readable(Protocol):
    """An open binary file, or an object like one."""

    def read(self) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | Readable
"""A picture: the path of its file, the bytes of the encoded file, or an open file."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message: JPEG, PNG, WebP or GIF (its first frame)."""

    source: ImageSource


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: text and pictures in the order in which the model reads them.

    `tool_calls` are the assistant's; `tool_call_id` names the call that a tool's turn answers.
    """

    role: Role
    parts: tuple[str | ImagePart, ...]
    _: KW_ONLY
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


def image(source: ImageSource) -> ImagePart:
    """A picture for `user`; its file is read when the generation starts."""
    return ImagePart(source)


def system(text: str) -> Message:
    """The turn that sets the rules."""
    return Message("system", (text,))


def user(*parts: str | ImagePart) -> Message:
    """A turn of the user: text and pictures in any order."""
    return Message("user", parts)


def assistant(text: str = "", calls: Iterable[ToolCall] = ()) -> Message:
    """A turn of the model: its text and its tool calls. The model continues it if it is last and without calls."""
    return Message("assistant", (text,) if text else (), tool_calls=tuple(calls))


def tool(call: ToolCall | str, *parts: str | ImagePart) -> Message:
    """The result of a tool call, which is given itself or by its id."""
    return Message("tool", parts, tool_call_id=call if isinstance(call, str) else call.id)
