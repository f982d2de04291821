"""How costly the multiples that a grammar's schemas ask for are to follow.

The library makes a state for each remainder that a number may leave, and none of its own limits counts them: a multiple
of 2^31 would take all memory. It computes remainders with 32 bits, so that large multiples would be wrong, too.
"""

import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

MAX_REMAINDERS = 10_000
"""They take a twentieth of a second and 5 MB."""
_MAX_DIGITS = 10
_EASY = 100
"""Up to this, zeros at the end make nothing costlier."""
_OVERFLOWS = 2**32 // 10
_VALUE = re.compile(r'multipleOf\\*"\s*:\s*([-+.\deE]+)')
_MEETING = re.compile(r'(?:allOf|anyOf|oneOf|patternProperties|\$ref)\\*"\s*:')
"""Keywords by which several multiples can meet in one number."""


def multiples_fault(grammar: str, *, can_meet: bool = False) -> str:
    """Returns why the multiples in a grammar cannot be followed; nothing if they can.

    Args:
        grammar: text that holds the schemas as JSON, whose keywords are written without escapes.
        can_meet: whether several schemas can describe one number, beyond what their keywords say.
    """
    try:
        values = {Decimal(text).normalize() for text in _VALUE.findall(grammar)}
    except InvalidOperation:
        return ""  # the library refuses it
    can_meet = can_meet or _MEETING.search(grammar) is not None
    if any(not _has_few_digits(value) for value in values):
        return f"multipleOf must have at most {_MAX_DIGITS} digits"
    if _num_remainders(values, can_meet=can_meet) > MAX_REMAINDERS:
        return f"multipleOf leaves more than {MAX_REMAINDERS} remainders, or several that meet do"
    return ""


def _has_few_digits(value: Decimal) -> bool:
    """Whether it can be written with few digits, before and behind the point."""
    return value.is_finite() and abs(value) < 10**_MAX_DIGITS and value == round(value, _MAX_DIGITS - 1)


def _num_remainders(values: Iterable[Decimal], *, can_meet: bool) -> int:
    """How many states numbers have that are multiples of these: of all at once, if they can meet."""
    if can_meet:
        scale = max((-int(value.as_tuple().exponent) for value in values), default=0)
        return _costly(math.lcm(*(int(value.scaleb(max(scale, 0))) for value in values)))
    return sum(_costly(int(value.scaleb(max(-int(value.as_tuple().exponent), 0)))) for value in values)


def _costly(multiple: int) -> int:
    bare = int(str(abs(multiple)).rstrip("0") or 0)
    return bare if bare <= _EASY and abs(multiple) < _OVERFLOWS else abs(multiple)
