"""docs/api.md tells of every parameter, and every test that it names is there."""

import ast
import re
from pathlib import Path

import pytest

from spyglass_bridge.openai import requests, validation

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_names_a_test_that_is_there(row: list[str]) -> None:
    found = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
    assert found
    tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert found[2] in names


def test_every_parameter_has_a_row() -> None:
    told = set(re.findall(r"\w+", " ".join(row[0] for row in ROWS)))
    tables = (
        validation.NEUTRAL_VALUES,
        validation.NEUTRAL_STREAM_OPTIONS,
        validation.LABELS,
        validation.MESSAGE_LABELS,
    )
    known = {name for table in tables for name in table}
    known |= requests.ChatRequest.model_fields.keys() | requests.CompletionRequest.model_fields.keys()
    assert known - told == set()
