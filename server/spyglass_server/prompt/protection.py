"""Keeps the caller's text from becoming control tokens on its way through a chat template.

Before rendering, the first character of every control token is replaced in the caller's text by a private character
that the conversation does not use. After rendering, any control token comes from the template: the text is cut at
those, and the characters of the pieces are restored.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spyglass_server.errors import InvalidRequest

_PRIVATE = range(0xE000, 0xF8FF)


@dataclass(frozen=True, slots=True)
class Protection:
    """Private characters for one conversation: replacements in the caller's text, and two marks."""

    replaced: dict[str, str]
    end: str
    """Marks the end of the message to continue."""
    name: str
    """Surrounds the number that replaces a tool's name."""

    def hide(self, text: str) -> str:
        """Returns the caller's text as the template receives it."""
        return text.translate({ord(character): private for character, private in self.replaced.items()})

    def restore(self, text: str) -> str:
        """Restores the caller's characters, even if the template wrote private ones as escapes."""
        for character, private in self.replaced.items():
            text = text.replace(private, character).replace(_escape(private), character)
        return text

    def number(self, tool: int) -> str:
        """Returns the replacement for a tool's name; nothing else contains it."""
        return f"{self.name}{tool}{self.name}"

    def has_number(self, text: str, tool: int) -> bool:
        """Whether a rendering contains the number of a tool."""
        return self.number(tool) in text.replace(_escape(self.name), self.name)


def protect(texts: Iterable[str], first_characters: Iterable[str]) -> Protection:
    """Returns a protection for the caller's `texts` from control tokens that begin with `first_characters`.

    Raises:
        InvalidRequest: the texts use so many private characters that too few are left.
    """
    used = {c for text in texts for c in _private(text)}
    free = [chr(code) for code in _PRIVATE if chr(code) not in used]
    characters = sorted(set(first_characters))
    if len(free) < len(characters) + 2:
        raise InvalidRequest("the text uses too many private characters", field="chat.messages")
    end, name, *others = free
    return Protection(dict(zip(characters, others, strict=False)), end, name)


def _private(text: str) -> Iterator[str]:
    """Yields the private characters in a text, whether literal or escaped."""
    yield from (c for c in text if ord(c) in _PRIVATE)
    yield from (chr(int(code, 16)) for code in re.findall(r"\\u([ef][0-9a-f]{3})", text))


def _escape(character: str) -> str:
    """Returns a private character as JSON and Python's repr() write it."""
    return f"\\u{ord(character):04x}"
