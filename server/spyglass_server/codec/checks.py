"""What every field of a message may be held to, with a refusal that names the field."""

from collections.abc import Sequence
from typing import Any, TypeVar

from spyglass_server.errors import InvalidRequest

Number = TypeVar("Number", int, float)
Many = TypeVar("Many", bound=Sequence[Any])


def in_range(field: str, value: Number, low: Number, high: Number) -> Number:
    """A number that lies between two. Raises InvalidRequest."""
    if not low <= value <= high:  # NaN is in no range
        raise InvalidRequest(f"{field} must be from {low} to {high}", field=field)
    return value


def at_most(field: str, values: Many, count: int) -> Many:
    """Values of which there are not too many. Raises InvalidRequest."""
    if len(values) > count:
        raise InvalidRequest(f"{field} holds {len(values)} entries; {count} are allowed", field=field)
    return values
