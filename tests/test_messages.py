"""Messages and records are made by keyword, so that a field that is put between others changes no meaning.

Looks at the source of all parts. A dataclass of more than three fields takes them by keyword only; a named tuple, which
cannot, is given three by position at most.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("protos", "common", "server", "bridge", "clients", "launcher", "benchmarks", "scripts")
MOST = 3
"""So many fields, or arguments, one keeps apart by their order."""
SHORT_FORMS = {
    "Message": "a role and its parts: the words in which people write conversations",
    "Tool": "a name, a description and a schema: as people write them",
    "Setting": "rows of a table, beside the class",
    "Route": "rows of a table, beside the class",
    "_Answer": "rows of a table, beside the class",
    "_Command": "rows of a table, beside the class",
    "Bar": "rows of a table, beside the class",
}
"""Dataclasses whose first fields may stand by position, up to a `KW_ONLY`, and why."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for part in PARTS:
        for file in sorted((ROOT / part).rglob("*.py")):
            if not file.stem.endswith(("_pb2", "_pb2_grpc")):
                yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def classes() -> Iterator[tuple[str, ast.ClassDef, list[str]]]:
    """Dataclasses and named tuples of more than three fields, with the types of those."""
    for name, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef) and (decorator(node) or is_named_tuple(node)):
                fields = [ast.unparse(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign)]
                fields = [one for one in fields if not one.startswith("ClassVar")]
                if sum(one != "KW_ONLY" for one in fields) > MOST:
                    yield f"{name}:{node.lineno} {node.name}", node, fields


def decorator(node: ast.ClassDef) -> str:
    """`dataclass` as it stands above a class; empty for other classes."""
    found = [ast.unparse(one) for one in node.decorator_list]
    return next((one for one in found if one.split("(")[0] in ("dataclass", "dataclasses.dataclass")), "")


def is_named_tuple(node: ast.ClassDef) -> bool:
    return "NamedTuple" in map(ast.unparse, node.bases)


def test_dataclasses_of_more_than_three_fields_take_keywords_only() -> None:
    found = [(where, node, fields) for where, node, fields in classes() if decorator(node)]
    assert len(found) > 30
    short = {node.name for _, node, fields in found if "KW_ONLY" in fields[: MOST + 1]}
    assert short == set(SHORT_FORMS)
    assert [w for w, node, _ in found if "kw_only=True" not in decorator(node) and node.name not in short] == []


def test_no_call_gives_one_more_than_three_arguments_by_position() -> None:
    names = {node.name for _, node, _ in classes()}
    assert {"EngineRequest", "Row", "TokenOutput"} <= names
    wrong = []
    for file, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
                is_spread = any(isinstance(one, ast.Starred) for one in node.args)
                if len(node.args) > MOST or is_spread:
                    wrong.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []
