"""Tools that the model may call: described by hand, or derived from a Python function."""

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; `arguments` is JSON, complete unless the answer was cut short."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> dict[str, Any]:
        """Returns the arguments as values. Raises ValueError if they are not a JSON object."""
        found = json.loads(self.arguments or "{}")
        if not isinstance(found, dict):
            raise ValueError(f"the arguments of {self.name} are not an object")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallPiece:
    """A piece of one call of an answer: its id and name in the first piece, then its arguments bit by bit."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    `parameters` is the JSON schema of an object. With `strict`, its calls always match that schema.
    `run_tools` calls `run` with the arguments by name; it may be a coroutine function.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    _: KW_ONLY
    strict: bool = False
    run: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], *, strict: bool = True) -> "Tool":
        """Builds a tool from a function's name, docstring, and parameters with their types.

        Parameters are str, int, float, bool, list[…], dict, Literal[…], or one of these | None. Raises TypeError for
        others.
        """
        hints = typing.get_type_hints(function)
        properties: dict[str, Any] = {}
        required = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or name not in hints:
                raise TypeError(f"{function.__name__}: parameter {name} needs a name and a type")
            properties[name] = _schema_of(hints[name])
            if parameter.default is parameter.empty:
                required.append(name)
        parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return cls(function.__name__, inspect.getdoc(function) or "", parameters, strict=strict, run=function)


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if hint is types.NoneType:
        return {"type": "null"}
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(one) for one in arguments]}
    raise TypeError(f"{hint} cannot be a tool's parameter")
