"""Writes an answer as it comes, its usage, and errors, with escape sequences made harmless."""

import re
from typing import Protocol, TextIO

from spyglass_client.answer import Answer
from spyglass_client.errors import AuthenticationError, SpyglassError
from spyglass_client.generation import AsyncGeneration

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Writer(Protocol):
    """Shows an answer as it comes."""

    def write(self, text: str) -> None:
        """Takes more of it."""

    def close(self) -> None:
        """Ends it, whole or not; once."""


class PlainWriter:
    """Writes the text as it is; an unfinished line is ended. A terminal gets nothing that could control it."""

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
    """Shows an answer while it is being generated, and returns it. Raises SpyglassError; what there was is shown."""
    try:
        async for chunk in generation:
            writer.write(chunk.text)
    finally:
        writer.close()
    return generation.answer


def printable(text: str) -> str:
    """Text from a model without what could control a terminal; newlines and tabs stay, also where they are CR LF."""
    return _CONTROLS.sub("�", text.replace("\r", ""))


def summary(answer: Answer) -> str:
    """What an answer took, in brackets."""
    usage = answer.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    ends = {"length": " (cut off at its longest)", "cancelled": " (stopped)"}.get(answer.finish_reason, "")
    return f"[{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens, ${usage.estimated_cost:.6f}{ends}]"


def describe(error: Exception) -> str:
    """What went wrong, in a line, with what one can do about it."""
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
