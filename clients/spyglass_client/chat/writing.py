"""Writes an answer as it arrives, its usage, and errors, with escape sequences made harmless."""

import re
from typing import Protocol, TextIO

from spyglass_client.answer import Answer
from spyglass_client.errors import AuthenticationError, SpyglassError
from spyglass_client.generation import AsyncGeneration

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Writer(Protocol):
    """Shows an answer as it arrives."""

    def write(self, text: str) -> None:
        """Shows more of the answer."""

    def close(self) -> None:
        """Ends the answer, complete or not; called once."""


class PlainWriter:
    """Writes the text unchanged and ends its last line. On a terminal, control characters are replaced."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False
        self._printable = out.isatty()

    def write(self, text: str) -> None:
        self._begun = True
        self._out.write(printable(text) if self._printable else text)
        self._out.flush()

    def close(self) -> None:
        if self._begun:
            self._out.write("\n")
            self._out.flush()


async def write_answer(generation: AsyncGeneration, writer: Writer) -> Answer:
    """Shows an answer while it is generated, and returns it. Raises SpyglassError after showing the text so far."""
    try:
        async for chunk in generation:
            writer.write(chunk.text)
    finally:
        writer.close()
    return generation.answer


def printable(text: str) -> str:
    """Replaces characters that could control a terminal; tabs and newlines stay, and CR LF becomes LF."""
    return _CONTROLS.sub("�", text.replace("\r", ""))


def summary(answer: Answer) -> str:
    """Formats the usage of an answer, in brackets."""
    usage = answer.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    ends = {"length": " (cut off at its longest)", "cancelled": " (stopped)"}.get(answer.finish_reason, "")
    return f"[{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens, ${usage.estimated_cost:.6f}{ends}]"


def describe(error: Exception) -> str:
    """Describes an error and its remedy in one line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if isinstance(error, AuthenticationError):
        return f"{text} (set SPYGLASS_API_KEY or --api-key)"
    if isinstance(error, SpyglassError):
        if error.field and error.field not in text:
            text += f" ({error.field})"
        if error.retry_after_s:
            text += f"; try again in {error.retry_after_s:g} s"
    return text
