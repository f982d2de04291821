r"""Rewrites regular expressions so that llguidance enforces them exactly.

llguidance accepts the escapes `\"` and `\\` wherever a string's pattern allows control characters, and takes `\d` for
the digits of all scripts. Whatever matches a rewritten expression matches the original one.
"""

import re

_ASCII = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[A-Za-z0-9_]",
    "W": "[^A-Za-z0-9_]",
    "s": r"[\t-\r\x20]",
    "S": r"[^\t-\r\x20]",
}
_PIECE = re.compile(r"\\[pP](\{[^}]*\}|.)|\\.|.|\\", re.DOTALL)
_WITHOUT_CONTROLS = r"[{}&&[^\x00-\x07\x0b\x0e-\x1f]]"


def ascii_classes(regex: str) -> str:
    r"""Returns the regular expression with `\d`, `\w` and `\s` restricted to ASCII."""
    return re.sub(r"\\(.)", lambda found: _ASCII.get(found[1], found[0]), regex, flags=re.DOTALL)


def exact_pattern(pattern: str) -> str:
    """Returns the pattern with the characters that JSON writes in hexadecimal excluded from its classes."""
    if re.search(r"\(\?[a-zA-Z]*x", pattern):
        raise ValueError("free space in it is not supported")
    result, at = [], 0
    while at < len(pattern):
        end = _end_of_class(pattern, at) if pattern[at] == "[" else _end_of_piece(pattern, at)
        part = pattern[at:end]
        is_class = part[0] == "[" or part[:2] in (r"\p", r"\P")
        result.append(_WITHOUT_CONTROLS.format(part) if is_class else part)
        at = end
    return "".join(result)


def _end_of_piece(pattern: str, at: int) -> int:
    """Returns the end of a character, an escape or a named class."""
    found = _PIECE.match(pattern, at)
    assert found is not None
    return found.end()


def _end_of_class(pattern: str, at: int) -> int:
    """Returns the end of the class that begins at a bracket; it may contain other classes."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "[":
            depth += 1
            at += pattern.startswith("^", at + 1)
            at += pattern.startswith("]", at + 1)  # a leading bracket is literal
        elif pattern[at] == "]":
            depth -= 1
        at += 1 + (pattern[at] == "\\")
        if not depth:
            break
    return at
