"""Bytes and JSON that are nearly right."""

import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_FORMS = ("<B", ">H", "<H", ">I", "<I")
_MAX_MUTATIONS = 4

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, 1e308, -0.0, 5e-324]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "\x00", "\ud800", "\u2028", "<|eot_id|>", "{}", "[]", "data:image/png;base64,AA==", "a" * 5000]
    ),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
"""Also what JSON cannot hold, such as NaN and half of a surrogate pair."""


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of some bytes, with a few faults."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, _MAX_MUTATIONS))):
        data = _mutate(draw, data, originals)
    return data


def _mutate(draw: st.DrawFn, data: bytes, originals: Sequence[bytes]) -> bytes:
    first, last = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
    match draw(st.sampled_from(["flip", "number", "insert", "cut", "drop", "double", "splice"])):
        case "flip" if first < len(data):
            flipped = data[first] ^ draw(st.integers(1, 255))
            return data[:first] + bytes([flipped]) + data[first + 1 :]
        case "number":
            form = draw(st.sampled_from(_FORMS))
            size = struct.calcsize(form)
            number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
            return data[:first] + struct.pack(form, number) + data[first + size :]
        case "insert":
            return data[:first] + draw(st.binary(max_size=16)) + data[first:]
        case "cut":
            return data[:first]
        case "drop":
            return data[:first] + data[last:]
        case "double":
            return data[:last] + data[first:last] + data[last:]
        case "splice":
            other = draw(st.sampled_from(originals))
            return data[:first] + other[draw(st.integers(0, len(other))) :]
    return data


@st.composite
def mutated_json(draw: st.DrawFn, originals: Sequence[Any]) -> Any:
    """One of some JSON values, in which a few of the values within are others."""
    value = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, _MAX_MUTATIONS))):
        value = _mutate_json(draw, value, originals)
    return value


def _mutate_json(draw: st.DrawFn, value: Any, originals: Sequence[Any]) -> Any:
    """Goes down into a value by chance, and changes what it comes to."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: _mutate_json(draw, value[name], originals)}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _mutate_json(draw, value[at], originals), *value[at + 1 :]]
    match draw(st.sampled_from(["replace", "replace", "drop", "add", "wrap", "graft"])):
        case "drop" if isinstance(value, dict) and value:
            gone = draw(st.sampled_from(sorted(value)))
            return {name: item for name, item in value.items() if name != gone}
        case "add" if isinstance(value, dict):
            return value | {draw(st.text(max_size=8)): draw(json_values)}
        case "add" if isinstance(value, list):
            return [*value, draw(json_values)]
        case "wrap":
            return draw(st.sampled_from([[value], {"a": value}, [value] * 3]))
        case "graft":
            return draw(st.sampled_from(originals))
    return draw(json_values)
