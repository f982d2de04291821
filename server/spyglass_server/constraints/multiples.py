"""Bounds what `multipleOf` costs in a grammar.

llguidance makes a state for each possible remainder of a number, before any of its own limits applies: a multiple of
2^31 would take all memory. It also computes remainders in 32 bits, so larger multiples would be wrong.
"""

import math
import re
from collections.abc import Set
from decimal import Decimal

MAX_REMAINDERS = 10_000
"""Maximum number of states for remainders: about 50 ms and 5 MB."""
_MAX_DIGITS = 10
_SMALL = 100
"""Trailing zeros add no cost to multiples up to this."""
_OVERFLOWS = 2**32 // 10
"""From here on the library's remainders overflow."""
_VALUE = re.compile(r'(?<!\\)"multipleOf"\s*:\s*([-+.\deE]+)')
_MEETING = re.compile(r'(?<!\\)"(?:allOf|anyOf|oneOf|patternProperties|\$ref)"\s*:')
"""Keywords that can make several multiples apply to one number, which multiplies their remainders."""


def multiples_fault(text: str, *, can_meet: bool = False) -> str:
    """Returns why the multiples in schemas are too costly; empty if they are not.

    Args:
        text: contains the schemas as JSON, with no escapes in keywords.
        can_meet: whether several schemas can apply to one number even without such a keyword.
    """
    try:
        values = {Decimal(text).normalize() for text in _VALUE.findall(text)}
    except ArithmeticError:
        return f"multipleOf must have at most {_MAX_DIGITS} digits"
    can_meet = can_meet or _MEETING.search(text) is not None
    if any(not _has_few_digits(value) for value in values):
        return f"multipleOf must have at most {_MAX_DIGITS} digits"
    if _num_remainders(values, can_meet=can_meet) > MAX_REMAINDERS:
        return f"multipleOf leaves more than {MAX_REMAINDERS:,} remainders; values for one number count together"
    return ""


def _has_few_digits(value: Decimal) -> bool:
    """Whether a value has few digits before and after the point."""
    return value.is_finite() and abs(value) < 10**_MAX_DIGITS and value == round(value, _MAX_DIGITS - 1)


def _num_remainders(values: Set[Decimal], *, can_meet: bool) -> int:
    """Counts the remainders of all values together: of their least common multiple, if they can meet."""
    if not can_meet:
        return sum(_cost(_scaled(value, _places(value))) for value in values)
    places = max(map(_places, values), default=0)
    together = 1
    for value in values:
        together = math.lcm(together, _scaled(value, places))
        if together >= _OVERFLOWS:
            break
    return _cost(together)


def _places(value: Decimal) -> int:
    """The number of digits behind the point."""
    return max(-int(value.as_tuple().exponent), 0)


def _scaled(value: Decimal, places: int) -> int:
    return int(abs(value).scaleb(places))


def _cost(multiple: int) -> int:
    """The states that a multiple takes, about; those of a small one are few, whatever zeros follow it."""
    if multiple >= _OVERFLOWS:
        return multiple
    bare = int(str(multiple).rstrip("0") or 0)
    return bare if bare <= _SMALL else multiple
