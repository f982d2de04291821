"""docs/architecture.md names only files, classes and functions that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PARTS = ("protos", "common", "server", "bridge", "clients", "launcher", "demo", "tests", "scripts")
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))
FILES = [span.split()[0] for span in SPANS if re.fullmatch(r"[\w./-]+\.(py|proto)( \S+)?", span)]
NAMES = [
    name
    for span in SPANS
    for name in re.findall(r"(?<![\w/.])[A-Z][A-Za-z]+(?:\.\w+)?(?![\w/])|\b[a-z]\w*_\w+\b(?![./])", span)
    if not span.startswith(("--", "/", "SPYGLASS"))
]


@cache
def files() -> list[str]:
    return [str(path.relative_to(ROOT)) for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()]


@cache
def defined() -> set[str]:
    """Classes, functions, methods as Class.method, constants and fields of the product; messages of the protocol."""
    names: set[str] = set()
    for file in files():
        text = (ROOT / file).read_text(encoding="utf-8") if file.endswith((".py", ".proto")) else ""
        if file.endswith(".proto"):
            names |= set(re.findall(r"\b(?:message|service|rpc|enum) (\w+)", text)) | set(
                re.findall(r"(\w+) = \d+;", text)
            )
        elif file.endswith(".py") and "_pb2" not in file:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(node.name)
                if isinstance(node, ast.ClassDef):
                    names |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
                if isinstance(node, ast.Name | ast.arg):
                    names.add(node.id if isinstance(node, ast.Name) else node.arg)
    return names | {Path(file).parts[1] for file in files() if len(Path(file).parts) > 1}


def test_the_page_names_something() -> None:
    assert len(FILES) > 20
    assert len(NAMES) > 40


@pytest.mark.parametrize("file", FILES)
def test_files_exist(file: str) -> None:
    assert any(found == file or found.endswith("/" + file) for found in files())


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_names_are_defined(name: str) -> None:
    assert name in defined()
