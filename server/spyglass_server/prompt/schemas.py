r"""Schemas and regular expressions, in words that the grammar's library takes exactly.

It computes with numbers of 53 bits, lets the escapes `\"` and `\\` through wherever a string's pattern allows control
characters, and takes `\d` for the digits of all scripts. Owns what is done about that: whatever holds to what comes out
holds to what went in. Knows nothing of grammars.
"""

import re
from typing import Any

_MOST_EXACT = 2**53
_ASCII = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[A-Za-z0-9_]",
    "W": "[^A-Za-z0-9_]",
    "s": r"[\t-\r\x20]",
    "S": r"[^\t-\r\x20]",
}
_PIECE = re.compile(r"\\[pP](\{[^}]*\}|.)|\\.|.|\\", re.DOTALL)
_NAMED = ("properties", "$defs", "definitions", "dependentSchemas")
"""Keywords under which names that people chose lead to schemas."""
_SAYING_NOTHING = ("default", "examples")
_BOUNDS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"),
)
_WITHOUT_CONTROLS = r"[{}&&[^\x00-\x07\x0b\x0e-\x1f]]"


def exact(schema: Any) -> Any:
    """A schema that holds in every detail. Raises ValueError for one that asks for what could hold only roughly."""
    if isinstance(schema, list):
        return [exact(one) for one in schema]
    if isinstance(schema, dict):
        return {name: _exact_in(name, value) for name, value in schema.items() if name not in _SAYING_NOTHING}
    return schema


def ascii_classes(regex: str) -> str:
    r"""A regular expression whose `\d`, `\w` and `\s` are of ASCII."""
    return re.sub(r"\\(.)", lambda found: _ASCII.get(found[1], found[0]), regex, flags=re.DOTALL)


def _exact_in(keyword: str, value: Any) -> Any:
    if isinstance(value, dict) and keyword in _NAMED:
        return {name: exact(one) for name, one in value.items()}
    if isinstance(value, dict) and keyword == "patternProperties":
        return {_without_controls(pattern): exact(one) for pattern, one in value.items()}
    if keyword in ("const", "enum"):
        _check_numbers(value)
        return value
    if keyword == "pattern" and isinstance(value, str):
        return _without_controls(value)
    if keyword in _BOUNDS and _is_number(value):
        return _bound(keyword, value)
    return exact(value)


def _bound(keyword: str, value: float) -> float:
    """A number that is exact, or that narrows the range to such numbers."""
    if keyword in ("maximum", "exclusiveMaximum") and value > _MOST_EXACT:
        return _MOST_EXACT
    if keyword in ("minimum", "exclusiveMinimum") and value < -_MOST_EXACT:
        return -_MOST_EXACT
    if abs(value) > _MOST_EXACT or (abs(value) == _MOST_EXACT and keyword.startswith("exclusive")):
        raise ValueError(f"{keyword} is beyond 2^53")
    return value


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _check_numbers(one)
    elif isinstance(value, int) and abs(value) > _MOST_EXACT:
        raise ValueError(f"{value} is beyond 2^53")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_controls(pattern: str) -> str:
    """A pattern whose classes leave out the characters that JSON writes in hexadecimal."""
    if re.search(r"\(\?[a-zA-Z]*x", pattern):
        raise ValueError("a pattern with free space in it")
    result, at = [], 0
    while at < len(pattern):
        end = _end_of_class(pattern, at) if pattern[at] == "[" else _end_of_piece(pattern, at)
        part = pattern[at:end]
        is_class = part[0] == "[" or part[:2] in (r"\p", r"\P")
        result.append(_WITHOUT_CONTROLS.format(part) if is_class else part)
        at = end
    return "".join(result)


def _end_of_piece(pattern: str, at: int) -> int:
    """Where a character, an escape or a class that has a name ends."""
    found = _PIECE.match(pattern, at)
    assert found is not None
    return found.end()


def _end_of_class(pattern: str, at: int) -> int:
    """Where the class ends that begins at a bracket; classes may stand in it."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "[":
            depth += 1
            at += pattern.startswith("^", at + 1)
            at += pattern.startswith("]", at + 1)  # a bracket that comes first is one like any other
        elif pattern[at] == "]":
            depth -= 1
        at += 1 + (pattern[at] == "\\")
        if not depth:
            break
    return at
