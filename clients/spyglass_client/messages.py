"""Conversations as plain values: `system("…"), user("…", image("cat.png")), assistant("…")`.

Owns the words for turns and pictures. Knows nothing of protobuf, and reads no file.
"""

import os
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]


class Readable(Protocol):
    """An open file, or anything like it, that gives bytes."""

    def read(self) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | Readable
"""A picture as the path of its file, as the bytes of the encoded file, or as an open file."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message: JPEG, PNG, WebP or GIF (its first frame)."""

    source: ImageSource


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: text and pictures in the order in which the model reads them."""

    role: Role
    parts: tuple[str | ImagePart, ...]


def image(source: ImageSource) -> ImagePart:
    """A picture for `user`; its file is read when the generation starts."""
    return ImagePart(source)


def system(text: str) -> Message:
    """A turn that sets the rules."""
    return Message("system", (text,))


def user(*parts: str | ImagePart) -> Message:
    """A turn of the one who asks: text and pictures in any order."""
    return Message("user", parts)


def assistant(text: str) -> Message:
    """A turn of the model. As the last message it is continued."""
    return Message("assistant", (text,))
