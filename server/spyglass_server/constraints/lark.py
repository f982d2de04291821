"""Keeps llguidance safe from grammars in its dialect of Lark.

Schemas in grammars are checked like any other, as the library panics at some invalid ones. Its recursion into a grammar
is bounded, as a stack overflow would end the process. And it never looks ahead for forced text: where that is endless,
as after /a+/ /a+/, whose first part takes every a, so is the search.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from spyglass_server.constraints.multiples import multiples_fault
from spyglass_server.constraints.schemas import translate
from spyglass_server.json_object import MAX_JSON_DEPTH, can_be_written

MAX_NESTING = 2500
"""Maximum in the units of `check`: about 60 % of a stack of 8 MiB."""
_NO_FORCING = '\n%llguidance {"no_forcing": true}'
"""If there are several such options, the last one takes effect."""
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(
    r"""(?:\#|//)[^\n]* | "(?:\\.|[^"\\])*" | /(?:\\.|[^/\\])+/ | <[^<>\s]+>
    | (?P<value>%(?:json|llguidance|regex)) | (?P<name>[A-Za-z_][\w-]*) | (?P<open>[(\[{]) | (?P<close>[)\]}]) | .""",
    re.DOTALL | re.VERBOSE,
)


def check(source: str) -> None:
    """Bounds the library's recursion into rules, however they refer to each other, and checks the schemas in a grammar.

    Raises:
        ValueError: the number of rules and the depth of their brackets could overflow a thread's stack; a schema is
            wrong, or asks for something that is not enforced; or the grammar is in JSON, which the library would accept
            as well.
    """
    if source.lstrip().startswith("{"):
        raise ValueError("it is JSON, not Lark's notation")
    names: set[str] = set()
    schemas: list[dict[str, Any]] = []
    depth = deepest = num_schemas = 0
    for token, value in _tokens(source):
        num_schemas += sum(1 for _ in _objects(value))
        if token["value"] == "%json" and isinstance(value, dict):
            schemas.append(value)
        if token["name"]:
            names.add(token["name"])
        depth += bool(token["open"]) - bool(token["close"])
        deepest = max(deepest, depth)
    if len(names) * (2 + deepest) + 3 * num_schemas > MAX_NESTING:
        raise ValueError("it has too many rules")
    _check_schemas(schemas)


def _check_schemas(schemas: list[dict[str, Any]]) -> None:
    """Applies the rules for standalone schemas. Raises ValueError."""
    if not all(map(can_be_written, schemas)):
        raise ValueError(f"a schema in it is not a JSON object, at most {MAX_JSON_DEPTH} deep")
    translated = [translate(schema).schema for schema in schemas]
    if reason := multiples_fault(json.dumps(translated), can_meet=True):
        raise ValueError(reason)


def without_forcing(source: str) -> str:
    """Returns the same grammar without lookahead for forced text; the source must be valid."""
    return source + _NO_FORCING


def _tokens(source: str) -> Iterator[tuple[re.Match[str], Any]]:
    """Yields the tokens of a grammar, each with the JSON that follows it, if it takes any."""
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
