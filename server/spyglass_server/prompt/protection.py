"""Keeps what people write from becoming control tokens on its way through a chat template.

Before rendering, the first character of every control token is replaced in people's text by a private character that
the conversation does not use. After rendering, only the template can have written a control token: the text is cut at
those, and the pieces get their characters back.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spyglass_server.errors import InvalidRequest

_PRIVATE = range(0xE000, 0xF8FF)


@dataclass(frozen=True, slots=True)
class Protection:
    """Private characters for one conversation: replacements in people's text, and two marks."""

    replaced: dict[str, str]
    end: str
    """Marks the end of the message that is to be continued."""
    name: str
    """Surrounds the number that takes the place of a tool's name."""

    def hide(self, text: str) -> str:
        """People's text as the template gets it."""
        return text.translate({ord(character): private for character, private in self.replaced.items()})

    def restore(self, text: str) -> str:
        """Puts people's characters back, also where the template wrote private ones as escapes."""
        for character, private in self.replaced.items():
            text = text.replace(private, character).replace(_escape(private), character)
        return text

    def number(self, tool: int) -> str:
        """Takes the place of a tool's name; nothing else contains it."""
        return f"{self.name}{tool}{self.name}"

    def has_number(self, text: str, tool: int) -> bool:
        """Whether a rendering contains the number of a tool."""
        return self.number(tool) in text.replace(_escape(self.name), self.name)


def protect(texts: Iterable[str], first_characters: Iterable[str]) -> Protection:
    """A protection for people's `texts` from control tokens that begin with `first_characters`.

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
    """The private characters in a text, as themselves or as escapes."""
    yield from (c for c in text if ord(c) in _PRIVATE)
    yield from (chr(int(code, 16)) for code in re.findall(r"\\u([ef][0-9a-f]{3})", text))


def _escape(character: str) -> str:
    """A private character as JSON and Python's repr() write it."""
    return f"\\u{ord(character):04x}"
