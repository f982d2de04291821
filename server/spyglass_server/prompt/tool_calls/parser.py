"""Separates an answer's text from its calls."""

from collections.abc import Collection

from spyglass_server.prompt.tool_calls.cursor import SPACE, CallPiece, Cursor, NotACall, Reading
from spyglass_server.prompt.tool_calls.json_call import read_json_call
from spyglass_server.prompt.tool_calls.python_call import read_python_calls
from spyglass_server.prompt.tool_calls.tagged_call import CLOSING_TAGS, read_tag

_BETWEEN_CALLS = ";,]"


class ToolParser:
    """Finds the calls in one answer."""

    def __init__(self, names: Collection[str], is_constrained: bool = False) -> None:
        """`names` are the tools' names. `is_constrained`: by a grammar, only calls begin like a call."""
        self._cursor = Cursor(names)
        self._is_constrained = is_constrained
        self._is_tagged = False
        self._reader: Reading | None = None
        self._begin()

    @property
    def has_called(self) -> bool:
        return self._cursor.has_called

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Takes more of the answer; returns what is certainly text, and new pieces of calls."""
        certain = ""
        for at, character in enumerate(text):
            if self._reader is None:
                certain += text[at:]
                break
            try:
                self._reader.send(character)
            except NotACall:
                certain += self._cursor.held
                self._reader = None
        return certain, self._cursor.take_pieces()

    def see_tag(self) -> None:
        """Takes the control token that precedes calls."""
        if self._reader is None:
            self._begin()
        self._is_tagged = True

    def finish(self) -> str:
        """Returns the held text at the end of the answer.

        Under a grammar, only white space is text: anything else is a call that was cut off before its arguments.
        """
        if self._reader is None:
            return ""
        held = self._cursor.held
        rest = held.strip(SPACE + _BETWEEN_CALLS)
        if rest and self._is_constrained:
            return ""
        for tag in CLOSING_TAGS:
            rest = rest.removeprefix(tag).strip(SPACE + _BETWEEN_CALLS)
        return held if rest or not self.has_called else ""

    def _begin(self) -> None:
        self._cursor.release()
        self._reader = self._read()
        next(self._reader)

    def _read(self) -> Reading:
        """Reads calls until one turns out to be text."""
        cursor = self._cursor
        while True:
            character = yield from cursor.next_visible()
            if character == "{":
                yield from read_json_call(cursor)
            elif character == "<":
                yield from read_tag(cursor)
            elif character == "[":
                yield from self._read_list()
            elif self._is_tagged and _begins_name(character):
                yield from read_python_calls(cursor, character, closing=")")
            elif not (self.has_called and character in _BETWEEN_CALLS):
                raise NotACall

    def _read_list(self) -> Reading:
        """Reads what may follow the bracket of a list: calls in JSON or in Python."""
        character = yield from self._cursor.next_visible()
        if character == "{":
            self._cursor.push_back(character)
        elif _begins_name(character):
            yield from read_python_calls(self._cursor, character, closing="]")
        else:
            raise NotACall


def _begins_name(character: str) -> bool:
    return character.isalpha() or character == "_"
