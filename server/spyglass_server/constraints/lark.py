"""Keeps llguidance safe from grammars in its dialect of Lark.

Schemas in them are checked as others are: at some that are wrong the library panics. How deep it recurses into a
grammar is bounded: a stack overflow would end the process. And it never looks ahead for what the answer must go on
with: where that has no end, as after /a+/ /a+/, whose first part takes every a, neither has the look.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from spyglass_server.constraints.multiples import multiples_fault
from spyglass_server.constraints.schemas import translate
from spyglass_server.json_object import MAX_JSON_DEPTH, can_be_written

MAX_NESTING = 2500
"""In the units of `check_nesting`: about 60 % of a stack of 8 MiB."""
_NO_FORCING = '\n%llguidance {"no_forcing": true}'
"""Of several such options the last one counts."""
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(
    r"""(?:\#|//)[^\n]* | "(?:\\.|[^"\\])*" | /(?:\\.|[^/\\])+/ | <[^<>\s]+>
    | (?P<value>%(?:json|llguidance|regex)) | (?P<name>[A-Za-z_][\w-]*) | (?P<open>[(\[{]) | (?P<close>[)\]}]) | .""",
    re.DOTALL | re.VERBOSE,
)


def check_nesting(source: str) -> None:
    """Bounds the recursion in which the library follows rules, whichever of them refer to which.

    Raises:
        ValueError: there are so many rules, in brackets so deep, that they could overflow a thread's stack; or it is in
            JSON, which the library would take as well.
    """
    if source.lstrip().startswith("{"):
        raise ValueError("it is JSON, not Lark's notation")
    names: set[str] = set()
    depth = deepest = num_schemas = 0
    for token, value in _tokens(source):
        num_schemas += sum(1 for _ in _objects(value))
        if token["name"]:
            names.add(token["name"])
        depth += bool(token["open"]) - bool(token["close"])
        deepest = max(deepest, depth)
    if len(names) * (2 + deepest) + 3 * num_schemas > MAX_NESTING:
        raise ValueError("it has too many rules")


def check_schemas(source: str) -> None:
    """Holds the schemas in a grammar to the rules for schemas that stand alone.

    Raises:
        ValueError: one is wrong, or asks for what is not enforced.
    """
    translated = []
    for token, value in _tokens(source):
        if token["value"] == "%json" and isinstance(value, dict):
            if not can_be_written(value):
                raise ValueError(f"a schema in it is not a JSON object, at most {MAX_JSON_DEPTH} deep")
            translated.append(translate(value).schema)
    if reason := multiples_fault(json.dumps(translated), can_meet=True):
        raise ValueError(reason)


def without_forcing(source: str) -> str:
    """The same grammar, of a source without a fault; what it forces is found token by token."""
    return source + _NO_FORCING


def _tokens(source: str) -> Iterator[tuple[re.Match[str], Any]]:
    """The tokens of a grammar, each with the JSON that follows it, if one must."""
    at = 0
    while at < len(source):
        token = _TOKEN.match(source, at)
        assert token is not None
        at = token.end()
        value = None
        if token["value"]:
            value, at = _json_value(source, at)
        yield token, value


def _json_value(source: str, at: int) -> tuple[Any, int]:
    space = _SPACE.match(source, at)
    assert space is not None
    at = space.end()
    try:
        return json.JSONDecoder().raw_decode(source, at)
    except (ValueError, RecursionError):  # the library refuses it
        return None, at


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
