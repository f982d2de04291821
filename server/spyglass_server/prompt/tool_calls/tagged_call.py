"""Calls in tags: <function=f>{…}</function>, and the tags around other calls."""

from spyglass_server.prompt.tool_calls.cursor import Cursor, NotACall, Reading

CLOSING_TAGS = ("</function>", "</tool_call>")
_AROUND_CALLS = ("tool_call", "/tool_call", "/function")
_MAX_TAG_CHARACTERS = 100


def read_tag(cursor: Cursor) -> Reading:
    """Reads a tag after its bracket, and the arguments if the tag names a function."""
    written: list[str] = []
    while (character := (yield from cursor.next())) != ">":
        written.append(character)
        if len(written) > _MAX_TAG_CHARACTERS:
            raise NotACall
    tag = "".join(written)
    if tag.startswith("function="):
        name = tag.removeprefix("function=").strip("\"' ")
        cursor.check_name(name)
        character = yield from cursor.next_visible()
        if character != "{":
            raise NotACall
        cursor.call(name)
        yield from cursor.stream_arguments(character)
        cursor.release()
    elif tag not in _AROUND_CALLS:
        raise NotACall
