"""Calls of tools in what the model writes, found while it writes.

Owns the shapes that calls have:

    {"name": "f", "parameters": {…}}        also "arguments", with "type": "function", several after each other or in []
    [f(a="b"), g()]                         Python's
    <function=f>{…}</function>
    <tool_call>…</tool_call>                around any of the others
    brave_search.call(query="…")            after the control token <|python_tag|>

An answer calls tools from its first character on, or from that token on; what begins otherwise, or calls something that
is no tool, is text. Every character is looked at once. Knows nothing of tokens, grammars or the wire.
"""

import ast
import json
import secrets
from collections.abc import Collection, Generator
from typing import Any, NamedTuple

_SPACE = " \t\r\n"
_BETWEEN_CALLS = ";,]"
_ENDS = ("</function>", "</tool_call>")
_MAX_PYTHON_CHARACTERS = 64 << 10
_MAX_TAG_CHARACTERS = 100


class CallPiece(NamedTuple):
    """More of a call, counted from 0: id and name in its first piece, and its arguments, a JSON object bit by bit."""

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class _NoCall(Exception):
    """What was taken for the beginning of a call is text."""


_Reading = Generator[None, str, Any]


class ToolParser:
    """Finds the calls in one answer."""

    def __init__(self, names: Collection[str], is_constrained: bool = False) -> None:
        """`names` are those of the tools. `is_constrained`: a grammar lets nothing begin like a call but a call."""
        self._names = names
        self._is_constrained = is_constrained
        self._count = 0
        self._pieces: list[CallPiece] = []
        self._held: list[str] = []  # what may turn out to be text
        self._arguments: list[str] | None = None  # of the call that is being written, where it is certain
        self._back = ""
        self._is_tagged = False
        self._reader: _Reading | None = None
        self._begin()

    @property
    def has_called(self) -> bool:
        return self._count > 0

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Takes more of the answer; returns what is certain to be text, and what is more of calls."""
        said: list[str] = []
        self._pieces = []
        for at, character in enumerate(text):
            if self._reader is None:
                said.append(text[at:])
                break
            try:
                self._reader.send(character)
            except _NoCall:
                said += self._held
                self._reader = None
        return "".join(said), self._joined()

    def see_tag(self) -> None:
        """Takes the control token after which calls follow."""
        if self._reader is None:
            self._begin()
        self._is_tagged = True

    def finish(self) -> str:
        """The text that was held back, when the answer is over.

        Under a grammar only white space is: the rest is a call that was cut off before its arguments.
        """
        if self._reader is None:
            return ""
        held = "".join(self._held)
        rest = held.strip(_SPACE + _BETWEEN_CALLS)
        if rest and self._is_constrained:
            return ""
        for end in _ENDS:
            rest = rest.removeprefix(end).strip(_SPACE + _BETWEEN_CALLS)
        return held if rest or not self.has_called else ""

    def _begin(self) -> None:
        self._held.clear()
        self._reader = self._read()
        next(self._reader)

    def _joined(self) -> list[CallPiece]:
        """The pieces of one push, at most one for each call."""
        self._flush_arguments()
        return self._pieces

    def _flush_arguments(self) -> None:
        """Adds what has come of the arguments, to the call's first piece where that is of this push too."""
        if self._arguments:
            call, written = self._count - 1, "".join(self._arguments)
            last = self._pieces[-1] if self._pieces else None
            if last is not None and last.call == call:
                self._pieces[-1] = last._replace(arguments=last.arguments + written)
            else:
                self._pieces.append(CallPiece(call, arguments=written))
            self._arguments.clear()

    # --- reading: generators that are sent one character after another --------------------------

    def _next(self) -> _Reading:
        if self._back:
            character, self._back = self._back, ""
            return character
        character = yield
        (self._held if self._arguments is None else self._arguments).append(character)
        return character

    def _next_visible(self) -> _Reading:
        while (character := (yield from self._next())) in _SPACE:
            pass
        return character

    def _read(self) -> _Reading:
        while True:
            character = yield from self._next_visible()
            if character == "{":
                yield from self._object()
            elif character == "<":
                yield from self._tag()
            elif character == "[":
                yield from self._list()
            elif self._is_tagged and (character.isalpha() or character == "_"):
                yield from self._python(character, closing=")")
            elif not (self.has_called and character in _BETWEEN_CALLS):
                raise _NoCall

    def _object(self) -> _Reading:
        """A call in JSON, after its brace."""
        name: str | None = None
        early: str | None = None  # arguments that come before the name
        is_called = False
        while (character := (yield from self._next_visible())) != "}":
            if character == ",":
                continue
            if character != '"':
                raise _NoCall
            key = yield from self._string()
            if (yield from self._next_visible()) != ":":
                raise _NoCall
            character = yield from self._next_visible()
            if key == "name" and name is None:
                if character != '"':
                    raise _NoCall
                name = yield from self._string()
                self._check(name)
            elif key in ("parameters", "arguments") and early is None and not is_called:
                if character != "{":
                    raise _NoCall
                if name is None:
                    early = yield from self._value(character)
                    continue
                self._call(name)
                is_called = True
                yield from self._stream_value(character)
            else:
                yield from self._value(character)
            if name is not None and early is not None and not is_called:
                self._call(name, early)
                is_called = True
        if name is None:
            raise _NoCall
        if not is_called:
            self._call(name, "{}")
        self._held.clear()

    def _tag(self) -> _Reading:
        """A tag after its bracket, and the arguments after a function's."""
        written = []
        while (character := (yield from self._next())) != ">":
            written.append(character)
            if len(written) > _MAX_TAG_CHARACTERS:
                raise _NoCall
        tag = "".join(written)
        if tag.startswith("function="):
            name = tag.removeprefix("function=").strip("\"' ")
            self._check(name)
            character = yield from self._next_visible()
            if character != "{":
                raise _NoCall
            self._call(name)
            yield from self._stream_value(character)
            self._held.clear()
        elif tag not in ("tool_call", "/tool_call", "/function"):
            raise _NoCall

    def _list(self) -> _Reading:
        """What may follow the bracket of a list: calls in JSON, or in Python."""
        character = yield from self._next_visible()
        if character == "{":
            self._back = character
        elif character.isalpha() or character == "_":
            yield from self._python(character, closing="]")
        else:
            raise _NoCall

    def _python(self, first: str, closing: str) -> _Reading:
        """Calls in Python up to a bracket that closes what is not opened in it, or that ends the only call."""
        written, quote, depth = [first], "", 0
        while True:
            character = yield from self._next()
            if not quote and depth == 0 and character == closing == "]":
                break
            written.append(character)
            if len(written) > _MAX_PYTHON_CHARACTERS:
                raise _NoCall
            if quote:
                if character == "\\":
                    written.append((yield from self._next()))
                elif character == quote:
                    quote = ""
            elif character in "\"'":
                quote = character
            elif character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
                if depth < 0:
                    raise _NoCall
                if depth == 0 and character == closing == ")":
                    break
        calls = _python_calls("[" + "".join(written) + "]")
        if not calls:
            raise _NoCall
        for name, _ in calls:
            self._check(name)
        for name, arguments in calls:
            self._call(name, arguments)
        self._held.clear()

    def _string(self) -> _Reading:
        """A JSON string after its quote, decoded."""
        written = ['"']
        while True:
            character = yield from self._next()
            written.append(character)
            if character == "\\":
                written.append((yield from self._next()))
            elif character == '"':
                break
        try:
            return json.loads("".join(written))
        except ValueError:
            raise _NoCall from None

    def _value(self, first: str) -> _Reading:
        """A JSON value as it is written; its first character has been read. Looks at brackets and quotes only."""
        written, depth, in_string = [first], int(first in "{["), first == '"'
        while depth or in_string or first not in '{["':
            character = yield from self._next()
            if first not in '{["' and character in ",}]" + _SPACE:
                self._back = character
                break
            written.append(character)
            if in_string:
                if character == "\\":
                    written.append((yield from self._next()))
                in_string = character != '"'
            elif character == '"':
                in_string = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
        return "".join(written)

    def _stream_value(self, first: str) -> _Reading:
        """Arguments that are given out as they come."""
        self._arguments = [first]
        yield from self._value(first)
        self._flush_arguments()
        self._arguments = None

    # --- calls ------------------------------------------------------------------------------------

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise _NoCall

    def _call(self, name: str, arguments: str = "") -> None:
        """From here on it is certain that this is a call."""
        self._pieces.append(CallPiece(self._count, id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments))
        self._count += 1
        self._held.clear()


def _python_calls(source: str) -> list[tuple[str, str]]:
    """Names and arguments of a list of calls: f(a="b"), or f.call(a="b")."""
    try:
        tree = ast.parse(source, mode="eval").body
        return [_python_call(node) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise _NoCall from None


def _python_call(node: ast.expr) -> tuple[str, str]:
    """Raises ValueError for what is no call with arguments by name."""
    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Attribute) and called.attr == "call":
        called = called.value
    if not isinstance(node, ast.Call) or not isinstance(called, ast.Name) or node.args:
        raise ValueError
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    written.encode()  # refuses half a character
    return called.id, written
