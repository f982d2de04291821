"""Resolves the references of a JSON schema.

Follows `$ref` inside one document: by JSON pointer, by `$anchor`, and by the `$id` of an embedded schema. Nothing is
ever fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

_SCHEMA = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_SCHEMAS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


@dataclass(frozen=True, slots=True)
class Place:
    """A schema in its document: its JSON pointer from the root, and the URI that its references are relative to."""

    schema: Any
    pointer: str
    base: str

    def below(self, *keys: str | int) -> "Place":
        """Returns the place under these keys of the schema."""
        found, pointer = self.schema, self.pointer
        for key in keys:
            found = found[key]
            pointer += "/" + str(key).replace("~", "~0").replace("/", "~1")
        return Place(found, pointer, _base(found, self.base))


class References:
    """The places in a document that references can point to."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.root = Place(document, "#", _base(document, ""))
        self._resources: dict[str, Place] = {"": self.root}
        self._anchors: dict[tuple[str, str], Place] = {}
        waiting = [self.root]
        while waiting:
            place = waiting.pop()
            self._note(place)
            waiting += _subschemas(place)

    def find(self, reference: str, base: str) -> Place | None:
        """Returns the place that a reference points to, or None if it is not in the document."""
        uri, _, fragment = (base + reference if reference.startswith("#") else _join(base, reference)).partition("#")
        resource = self._resources.get(uri)
        if resource is None or not fragment:
            return resource
        if not fragment.startswith("/"):
            return self._anchors.get((uri, fragment))
        return _follow(resource, unquote(fragment))

    def _note(self, place: Place) -> None:
        self._resources.setdefault(place.base, place)
        for keyword in ("$anchor", "$dynamicAnchor", "$id"):  # before 2019, "#name" as an $id was an anchor
            name = place.schema.get(keyword)
            if isinstance(name, str) and (keyword != "$id" or name.startswith("#")):
                self._anchors.setdefault((place.base, name.removeprefix("#")), place)


def _subschemas(place: Place) -> Iterator[Place]:
    for keyword, value in place.schema.items():
        if keyword in _SCHEMA and isinstance(value, dict):
            yield place.below(keyword)
        elif keyword in _SCHEMAS and isinstance(value, list):
            yield from (place.below(keyword, i) for i, one in enumerate(value) if isinstance(one, dict))
        elif keyword in _NAMED and isinstance(value, dict):
            yield from (place.below(keyword, name) for name, one in value.items() if isinstance(one, dict))


def _follow(place: Place, pointer: str) -> Place | None:
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place.schema, dict) and key in place.schema:
            place = place.below(key)
        elif isinstance(place.schema, list) and key in map(str, range(len(place.schema))):
            place = place.below(int(key))
        else:
            return None
    return place


def _base(schema: Any, outer: str) -> str:
    """Returns the URI that references in a schema are relative to: its `$id`, without a fragment."""
    name = schema.get("$id") if isinstance(schema, dict) else None
    return _join(outer, name).partition("#")[0] if isinstance(name, str) and not name.startswith("#") else outer


def _join(base: str, reference: str) -> str:
    try:
        return reference if urlsplit(reference).scheme else urljoin(base, reference)
    except ValueError:  # such as an unclosed bracket
        return reference
