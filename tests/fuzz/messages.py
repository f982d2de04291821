"""Messages of the protocol at random, from what their descriptors say."""

from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

_MAX_DEPTH = 5
_MAX_FIELDS = 5
_TEXTS = (
    *(
        "",
        "hi",
        "a",
        "f",
        "x" * 300,
        "{}",
        '{"type": "object"}',
        '{"type": "string", "pattern": "^a+$"}',
        "[",
        "(a+)+b",
    ),
    *(
        'start: "a"',
        "<|image|>",
        "<|eot_id|>",
        "\x00",
        "\u2028",
        "é",
        "limits.usd_per_day",
        "name",
        "expires",
        "tenant",
    ),
)
_texts = st.sampled_from(_TEXTS) | st.text(max_size=12)
_NUMBERS = (0, 1, 2, 3, 4, 5, 20, 64, 255, 1000, 2**20, 2**31 - 1)


def messages(kind: type[M], **given: "st.SearchStrategy[Any]") -> "st.SearchStrategy[M]":
    """Messages of a type; fields that are given are made as they are."""
    return _messages(kind, given)


@st.composite
def _messages(draw: st.DrawFn, kind: type[M], given: "dict[str, st.SearchStrategy[Any]]") -> M:
    message = kind()
    _fill(draw, message, 0)
    for name, values in given.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        message.ClearField(name)
        if field.message_type is not None:
            getattr(message, name).CopyFrom(draw(values))
        else:
            setattr(message, name, draw(values))
    return message


def _fill(draw: st.DrawFn, message: Message, depth: int) -> None:
    fields = [field for field in message.DESCRIPTOR.fields if depth < _MAX_DEPTH or field.message_type is None]
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), max_size=_MAX_FIELDS)):
        _set(draw, message, field, depth)


def _set(draw: st.DrawFn, message: Message, field: Any, depth: int) -> None:
    if field.message_type is None:
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_values(field), max_size=3)))
        else:
            setattr(message, field.name, draw(_values(field)))
    elif _is_map(field.message_type):
        entry = field.message_type.fields_by_name
        getattr(message, field.name)[draw(_values(entry["key"]))] = draw(_values(entry["value"]))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 3))):
            _fill(draw, getattr(message, field.name).add(), depth + 1)
    else:
        inner = GetMessageClass(field.message_type)()
        _fill(draw, inner, depth + 1)
        getattr(message, field.name).CopyFrom(inner)


def _is_map(descriptor: Descriptor) -> bool:
    return bool(descriptor.GetOptions().map_entry)


def _values(field: Any) -> "st.SearchStrategy[Any]":
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=20)
        case FieldDescriptor.CPPTYPE_STRING:
            return _texts
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats() | st.sampled_from([0.0, 0.5, 1.0])
        case FieldDescriptor.CPPTYPE_FLOAT:
            return st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0])
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(
                -(2**31), 2**31 - 1
            )
    bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    is_signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return st.sampled_from(_NUMBERS) | st.integers(least, most)
