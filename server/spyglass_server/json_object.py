"""Reads JSON objects that callers send as text: schemas, parameters and arguments of tools."""

import json
from typing import Any

MAX_JSON_DEPTH = 64


def read_json_object(text: str) -> dict[str, Any] | None:
    """Reads an object, if it is one that can be written again."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and can_be_written(found) else None


def can_be_written(value: Any) -> bool:
    """Whether a value that was read is JSON: no NaN, no infinity, no lone surrogate, and not too deep."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return not _is_deeper(value, MAX_JSON_DEPTH)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists stand in each other more than `depth` times."""
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(
        _is_deeper(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value)
    )
