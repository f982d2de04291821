"""Reads JSON objects that callers send as text: schemas, parameters and arguments of tools."""

import json
from typing import Any

MAX_JSON_DEPTH = 64


def read_json_object(text: str) -> dict[str, Any] | None:
    """Reads an object; returns None if it is invalid or cannot be written again."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and can_be_written(found) else None


def can_be_written(value: Any) -> bool:
    """Whether a parsed value is valid JSON: no NaN, no infinity, no lone surrogate, and not too deep."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return not _is_deeper(value, MAX_JSON_DEPTH)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists are nested more than `depth` levels deep."""
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(
        _is_deeper(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value)
    )
