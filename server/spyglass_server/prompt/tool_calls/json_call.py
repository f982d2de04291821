"""Calls in JSON: {"name": "f", "parameters": {…}}."""

import json

from spyglass_server.prompt.tool_calls.cursor import Cursor, NotACall, Reading


def read_json_call(cursor: Cursor) -> Reading:
    """Reads a call after its opening brace."""
    name: str | None = None
    early: str | None = None  # arguments that come before the name
    is_called = False
    while (character := (yield from cursor.next_visible())) != "}":
        if character == ",":
            continue
        if character != '"':
            raise NotACall
        key = yield from _string(cursor)
        if (yield from cursor.next_visible()) != ":":
            raise NotACall
        character = yield from cursor.next_visible()
        if key == "name" and name is None:
            if character != '"':
                raise NotACall
            name = yield from _string(cursor)
            cursor.check_name(name)
        elif key in ("parameters", "arguments") and early is None and not is_called:
            if character != "{":
                raise NotACall
            if name is None:
                early = yield from cursor.value(character)
                continue
            cursor.call(name)
            is_called = True
            yield from cursor.stream_arguments(character)
        else:
            yield from cursor.value(character)
        if name is not None and early is not None and not is_called:
            cursor.call(name, early)
            is_called = True
    if name is None:
        raise NotACall
    if not is_called:
        cursor.call(name, "{}")
    cursor.release()


def _string(cursor: Cursor) -> Reading:
    """Reads a JSON string after its quote, and decodes it."""
    written = ['"']
    while True:
        character = yield from cursor.next()
        written.append(character)
        if character == "\\":
            written.append((yield from cursor.next()))
        elif character == '"':
            break
    try:
        return json.loads("".join(written))
    except ValueError:
        raise NotACall from None
