"""The place in an answer up to which it has been read, and the calls found so far."""

import secrets
from collections.abc import Collection, Generator
from typing import Any, NamedTuple

SPACE = " \t\r\n"

Reading = Generator[None, str, Any]
"""A reader of a syntax: it is sent one character after another."""


class CallPiece(NamedTuple):
    """More of a call, counted from 0: id and name in its first piece, and its arguments, a JSON object bit by bit."""

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class NotACall(Exception):
    """What looked like the beginning of a call is text."""


class Cursor:
    """Gives readers the answer's characters and takes the calls that they find.

    Characters are held until it is certain that they belong to a call; those of arguments that belong to a certain call
    are passed on at the end of each push. Every character is looked at once.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are those of the tools."""
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
        """What may still turn out to be text."""
        return "".join(self._held)

    def release(self) -> None:
        """Forgets what is held: it belongs to a call."""
        self._held.clear()

    def take_pieces(self) -> list[CallPiece]:
        """The pieces since the last time, at most one for each call."""
        self._flush_arguments()
        pieces, self._pieces = self._pieces, []
        return pieces

    def check_name(self, name: str) -> None:
        """Raises NotACall for a name that is not a tool's."""
        if name not in self._names:
            raise NotACall

    def call(self, name: str, arguments: str = "") -> None:
        """Begins a call, which is certain from here on."""
        self._pieces.append(CallPiece(self._count, id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments))
        self._count += 1
        self._held.clear()

    # --- for readers: each is to be delegated to with `yield from` ---

    def next(self) -> Reading:
        """The next character."""
        if self._pushed_back:
            character, self._pushed_back = self._pushed_back, ""
            return character
        character = yield
        (self._held if self._arguments is None else self._arguments).append(character)
        return character

    def push_back(self, character: str) -> None:
        """Has `next` return a character once more."""
        self._pushed_back = character

    def next_visible(self) -> Reading:
        """The next character that is not white space."""
        while (character := (yield from self.next())) in SPACE:
            pass
        return character

    def value(self, first: str) -> Reading:
        """A JSON value as it is written, whose first character has been read. Looks at brackets and quotes only."""
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
        """The arguments of the current call, passed on while they are written."""
        self._arguments = [first]
        yield from self.value(first)
        self._flush_arguments()
        self._arguments = None

    def _flush_arguments(self) -> None:
        """Adds what has come of the arguments, to the call's first piece where that is of the same push."""
        if not self._arguments:
            return
        call, written = self._count - 1, "".join(self._arguments)
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.call == call:
            self._pieces[-1] = last._replace(arguments=last.arguments + written)
        else:
            self._pieces.append(CallPiece(call, arguments=written))
        self._arguments.clear()
