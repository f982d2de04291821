"""Checks that a JSON schema can be enforced exactly; if not, finds the subschema at fault."""

import re
from collections.abc import Iterator
from typing import Any

from spyglass_server.constraints.closing import close, has_choice
from spyglass_server.constraints.library import NO_ANSWER, fault, one_line, schema_grammar, syntax_fault, without_text
from spyglass_server.constraints.nesting import MAX_NESTING, nesting
from spyglass_server.constraints.schemas import SchemaRefused, Translation, quoted, subschemas, translate

_MAX_ASKED = 200
"""Maximum library calls in a search; each takes some milliseconds, more for large schemas."""
_REFERENCE = "#/$defs/"
_UNSATISFIABLE = "Unsatisfiable schema: "
_OWN_WORDS = {
    "oneOf constraints are not supported": "oneOf is enforced only where its parts visibly exclude each other",
    "anyOf is empty": "it allows no value",
    "circular references with sibling keys": "a reference that leads back to it is enforced only where it stands alone",
    "Regex is empty": "no string is valid",
    "Unable to determine if regex is empty": "it would be too costly to find out whether any string is valid",
}
"""Replacements for reasons that mention the library's options, or quote text that the caller did not write."""


def enforced(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema that the library enforces; values valid against it are valid against the caller's schema.

    Raises:
        SchemaRefused: the schema is wrong, or cannot be enforced.
    """
    try:
        return _enforced(schema)
    except SchemaRefused:
        raise
    except ValueError as error:  # the library cannot read it, e.g. numbers beyond 2^64 where no numbers belong
        raise SchemaRefused("#", one_line(str(error))) from error


def _enforced(schema: dict[str, Any]) -> dict[str, Any]:
    translation = translate(schema)
    _check_nesting(translation.schema)
    open_schema = translation.schema
    is_refused = has_choice(open_schema) and syntax_fault(schema_grammar(open_schema))
    closed = open_schema if is_refused else close(open_schema)
    if not fault(schema_grammar(closed)):
        return closed
    if reason := fault(schema_grammar(open_schema)):
        raise _Search(translation).refusal(reason)
    return open_schema


def _check_nesting(schema: dict[str, Any]) -> None:
    definitions = {"#": schema} | {_REFERENCE + name: one for name, one in schema.get("$defs", {}).items()}
    references = {name: set(_references(one)) for name, one in definitions.items()}
    if nesting(references, {name: 1 + _depth(one) for name, one in definitions.items()}) > MAX_NESTING:
        raise SchemaRefused("#", f"its references lead more than {MAX_NESTING} schemas deep")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for one in subschemas(schema):
            yield from _references(one)


def _depth(schema: Any) -> int:
    below = subschemas(schema) if isinstance(schema, dict) else ()
    return max((1 + _depth(one) for one in below), default=0)


class _Search:
    """Finds the innermost subschema at fault, by checking parts of the schema with the library."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._definitions = translation.schema.get("$defs", {})
        self._num_asked = 0
        self._found: set[int] = set()

    def refusal(self, reason: str) -> SchemaRefused:
        """Returns the caller's error for a schema that the library refuses for this reason."""
        schema, pointer = self._translation.schema, "#"
        while deeper := self._search(list(self._below(schema)), _is_unsatisfiable(reason)):
            schema, reason = deeper
            pointer = self._pointer(schema) or pointer
            self._found.add(id(schema))
        return SchemaRefused(pointer, self._in_own_words(schema, reason))

    def _below(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        following = [self._definitions[schema["$ref"].removeprefix(_REFERENCE)]] if "$ref" in schema else []
        for one in (*subschemas(schema), *following):
            if isinstance(one, dict) and id(one) not in self._found:
                yield one

    def _search(self, schemas: list[dict[str, Any]], unsatisfiable: bool) -> tuple[dict[str, Any], str] | None:
        if unsatisfiable:
            asked = ((one, self._ask(one)) for one in schemas)
            return next(((one, reason) for one, reason in asked if _is_unsatisfiable(reason)), None)
        while len(schemas) > 1:  # the library refuses an anyOf if it refuses one of its parts
            half = schemas[: len(schemas) // 2]
            schemas = half if self._is_wrong({"anyOf": half}) else schemas[len(half) :]
        return next(((one, self._ask(one)) for one in schemas if self._is_wrong(one)), None)

    def _is_wrong(self, schema: dict[str, Any]) -> bool:
        reason = self._ask(schema)
        return bool(reason) and not _is_unsatisfiable(reason)

    def _ask(self, schema: dict[str, Any]) -> str:
        self._num_asked += 1
        if self._num_asked > _MAX_ASKED:
            return ""
        return fault(schema_grammar(schema | {"$defs": self._definitions}))

    def _pointer(self, schema: Any) -> str:
        origin = self._translation.origins.get(id(schema))
        return origin.pointer if origin else ""

    def _in_own_words(self, schema: dict[str, Any], reason: str) -> str:
        """Rewords a reason so that it quotes only text that the caller wrote."""
        if "regex parse error" in reason:
            for pattern in (
                *([schema["pattern"]] if "pattern" in schema else []),
                *schema.get("patternProperties", ()),
            ):
                if syntax_fault(schema_grammar({"pattern": pattern})):
                    own = self._translation.patterns.get(pattern, pattern)
                    return f"pattern {quoted(own)}: {without_text(reason)}"
        is_unsatisfiable = reason.startswith(_UNSATISFIABLE)
        reason = reason.removeprefix(_UNSATISFIABLE)
        reason = next((own for start, own in _OWN_WORDS.items() if reason.startswith(start)), reason)
        for exact, own in self._translation.patterns.items():
            reason = reason.replace(exact, own)
        reason = re.sub(
            r"json-schema:///#/\$defs/(\w+)", lambda found: self._pointer(self._definitions[found[1]]), reason
        )
        return f"{NO_ANSWER}: {reason}" if is_unsatisfiable else reason


def _is_unsatisfiable(reason: str) -> bool:
    return reason.startswith((_UNSATISFIABLE, NO_ANSWER))
