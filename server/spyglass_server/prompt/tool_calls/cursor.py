"""The position up to which an answer has been read, and the calls found so far."""

import secrets
from collections.abc import Collection, Generator
from typing import Any, NamedTuple

SPACE = " \t\r\n"

Reading = Generator[None, str, Any]
"""A reader of a syntax, which is sent one character at a time."""


class CallPiece(NamedTuple):
    """A piece of a call, numbered from 0: id and name in the first piece, and its arguments, a JSON object in parts."""

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class NotACall(Exception):
    """What looked like the start of a call is text."""


class Cursor:
    """Feeds the answer's characters to readers and collects the calls that they find.

    Characters are held until they certainly belong to a call; from then on, its arguments are passed on at the end of
    each push. Every character is read once.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the tools' names."""
        self._names = names
        self._count = 0
        self._pieces: list[CallPiece] = []
        self._held: list[str] = []
        self._arguments: list[str] | None = None  # of the call that is being written
        self._pushed_back = ""

    @property
    def has_called(self) -> bool:
        return self._count > 0

    @property
    def held(self) -> str:
        """Characters that may still turn out to be text."""
        return "".join(self._held)

    def release(self) -> None:
        """Drops the held characters, as they belong to a call."""
        self._held.clear()

    def take_pieces(self) -> list[CallPiece]:
        """Returns the pieces since the last time, at most one per call."""
        self._flush_arguments()
        pieces, self._pieces = self._pieces, []
        return pieces

    def check_name(self, name: str) -> None:
        """Raises NotACall for a name that is not a tool's."""
        if name not in self._names:
            raise NotACall

    def call(self, name: str, arguments: str = "") -> None:
        """Begins a call; from here on, it is certain to be one."""
        self._pieces.append(CallPiece(self._count, id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments))
        self._count += 1
        self._held.clear()

    # --- for readers, which delegate with `yield from` ---

    def next(self) -> Reading:
        """Reads the next character."""
        if self._pushed_back:
            character, self._pushed_back = self._pushed_back, ""
            return character
        character = yield
        (self._held if self._arguments is None else self._arguments).append(character)
        return character

    def push_back(self, character: str) -> None:
        """Makes `next` return a character again."""
        self._pushed_back = character

    def next_visible(self) -> Reading:
        """Reads the next character that is not white space."""
        while (character := (yield from self.next())) in SPACE:
            pass
        return character

    def value(self, first: str) -> Reading:
        """Reads the source of a JSON value after its first character. Only interprets brackets and quotes."""
        written, depth, in_string = [first], int(first in "{["), first == '"'
        while depth or in_string or first not in '{["':
            character = yield from self.next()
            if first not in '{["' and character in ",}]" + SPACE:
                self.push_back(character)
                break
            written.append(character)
            if in_string:
                if character == "\\":
                    written.append((yield from self.next()))
                in_string = character != '"'
            elif character == '"':
                in_string = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
        return "".join(written)

    def stream_arguments(self, first: str) -> Reading:
        """Reads the current call's arguments and passes them on as they arrive."""
        self._arguments = [first]
        yield from self.value(first)
        self._flush_arguments()
        self._arguments = None

    def _flush_arguments(self) -> None:
        """Adds the arguments read so far, to the call's first piece if that is from the same push."""
        if not self._arguments:
            return
        call, written = self._count - 1, "".join(self._arguments)
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.call == call:
            self._pieces[-1] = last._replace(arguments=last.arguments + written)
        else:
            self._pieces.append(CallPiece(call, arguments=written))
        self._arguments.clear()
