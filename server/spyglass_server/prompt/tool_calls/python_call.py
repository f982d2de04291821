"""Calls in Python: [f(a="b"), g()], and brave_search.call(query="…") after its control token."""

import ast
import json

from spyglass_server.prompt.tool_calls.cursor import Cursor, NotACall, Reading

_MAX_CHARACTERS = 64 << 10


def read_python_calls(cursor: Cursor, first: str, closing: str) -> Reading:
    """Reads calls after their first character, up to `closing`: "]" for a list of calls, ")" for a single one."""
    written, quote, depth = [first], "", 0
    while True:
        character = yield from cursor.next()
        if not quote and depth == 0 and character == closing == "]":
            break
        written.append(character)
        if len(written) > _MAX_CHARACTERS:
            raise NotACall
        if quote:
            if character == "\\":
                written.append((yield from cursor.next()))
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                raise NotACall
            if depth == 0 and character == closing == ")":
                break
    calls = _calls("[" + "".join(written) + "]")
    if not calls:
        raise NotACall
    for name, _ in calls:
        cursor.check_name(name)
    for name, arguments in calls:
        cursor.call(name, arguments)


def _calls(source: str) -> list[tuple[str, str]]:
    """Returns names and arguments of a list of calls: f(a="b"), or f.call(a="b")."""
    try:
        tree = ast.parse(source, mode="eval").body
        return [_call(node) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise NotACall from None


def _call(node: ast.expr) -> tuple[str, str]:
    """Returns name and arguments of a call. Raises ValueError unless it is one with only keyword arguments."""
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
    written.encode()  # raises for half a surrogate pair
    return called.id, written
