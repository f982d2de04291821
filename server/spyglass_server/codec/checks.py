"""What every field of a message may be held to, with a refusal that names the field."""

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from spyglass_server.errors import InvalidRequest

Number = TypeVar("Number", int, float)
Many = TypeVar("Many", bound=Sequence[Any])
_LAST_S = 253_402_300_799.0
"""The last second that a Timestamp can say; a part of it more would be rounded to what it cannot."""


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


def in_calendar(field: str, moment: Timestamp) -> float:
    """A time in seconds since 1970, between the years 1 and 9999. Raises InvalidRequest."""
    try:
        return min(moment.ToNanoseconds() / 1e9, _LAST_S)
    except ValueError:
        raise InvalidRequest(f"{field} must be a time between the years 1 and 9999", field=field) from None


def nothing_unknown(message: Message, field: str = "") -> None:
    """Refuses a message that holds, at any depth, a field of a later version: what is asked for is never passed over.

    Args:
        message: what a caller sent.
        field: its path in the request; empty for the request itself.

    Raises:
        InvalidRequest: it holds one; the error has the path of the message that does, as `chat.messages[0]`.
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
