"""Checks for fields of messages; the errors name the field."""

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from spyglass_server.errors import InvalidRequest

Number = TypeVar("Number", int, float)
Many = TypeVar("Many", bound=Sequence[Any])
_LAST_S = 253_402_300_799.0
"""The last second that a Timestamp can represent; a fraction more would round to one that it cannot."""


def in_range(field: str, value: Number, low: Number, high: Number) -> Number:
    """Returns `value` if it is in the range. Raises InvalidRequest otherwise."""
    if not low <= value <= high:  # NaN is in no range
        raise InvalidRequest(f"{field} must be from {low} to {high}", field=field)
    return value


def at_most(field: str, values: Many, count: int) -> Many:
    """Returns `values` if there are at most `count`. Raises InvalidRequest otherwise."""
    if len(values) > count:
        raise InvalidRequest(f"{field} holds {len(values)} entries; {count} are allowed", field=field)
    return values


def in_calendar(field: str, moment: Timestamp) -> float:
    """Returns a time in seconds since 1970, between the years 1 and 9999. Raises InvalidRequest."""
    try:
        return min(moment.ToNanoseconds() / 1e9, _LAST_S)
    except ValueError:
        raise InvalidRequest(f"{field} must be a time between the years 1 and 9999", field=field) from None


def nothing_unknown(message: Message, field: str = "") -> None:
    """Refuses a message that has, at any depth, a field of a later version: nothing requested is silently ignored.

    Args:
        message: what a caller sent.
        field: its path in the request; empty for the request itself.

    Raises:
        InvalidRequest: it has one; the error has the path of the message that contains it, as `chat.messages[0]`.
    """
    if len(unknown := UnknownFieldSet(message)):
        raise InvalidRequest(
            f"field {unknown[0].field_number} of {message.DESCRIPTOR.name} is of a later version than this server",
            field=field,
        )
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue  # maps hold plain values
        path = f"{field}.{descriptor.name}" if field else descriptor.name
        if descriptor.is_repeated:
            for i, each in enumerate(value):
                nothing_unknown(each, f"{path}[{i}]")
        else:
            nothing_unknown(value, path)
