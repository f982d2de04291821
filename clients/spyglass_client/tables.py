"""Output formats of commands: aligned columns for people, JSON and CSV for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_words: int) -> str:
    """Formats columns two spaces apart: first `num_words` left-aligned words, then right-aligned numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < num_words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines) + "\n"


def as_json(value: Any) -> str:
    """Formats a value of dataclasses, lists and times as JSON."""
    return json.dumps(value, default=_plain, indent=2, ensure_ascii=False) + "\n"


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def as_csv(rows: Sequence[Any]) -> str:
    """Formats dataclasses of one kind as CSV with a header; fields of nested ones get their own columns."""
    flat = [_flat(row) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in _plain(row).items():
        if dataclasses.is_dataclass(value):
            values |= _flat(value)
        else:
            values[name] = value.isoformat() if isinstance(value, datetime) else value
    return values
