"""Expresses `propertyNames` in keywords that llguidance enforces, where these are exactly equivalent."""

from typing import Any

from spyglass_server.constraints.patterns import exact_pattern


def restrict_names(schema: dict[str, Any], names: bool | dict[str, Any]) -> None:
    """Makes a translated schema allow only properties whose names are valid against `names`, also translated.

    Raises:
        ValueError: no other keywords are equivalent.
    """
    asked = dict(names) if isinstance(names, dict) else {}
    types = asked.pop("type", "string")
    if names is False or "string" not in ([types] if isinstance(types, str) else types):
        _name(schema, [])
    elif asked.keys() == {"const"}:
        _name(schema, [asked["const"]])
    elif asked.keys() == {"enum"}:
        _name(schema, asked["enum"])
    elif asked.keys() == {"pattern"}:
        _match(schema, asked["pattern"])
    elif asked and asked.keys() <= {"minLength", "maxLength"}:
        least, most = asked.get("minLength", 0), asked.get("maxLength", "")
        _match(schema, exact_pattern(rf"^[\s\S]{{{least},{most}}}$"))
    elif asked:
        raise ValueError(f"with {next(iter(asked)) if len(asked) == 1 else 'several constraints'} is not enforced")


def _name(schema: dict[str, Any], names: list[Any]) -> None:
    """Allows only properties with these names."""
    names = [name for name in names if isinstance(name, str)]
    if names and "patternProperties" in schema:
        raise ValueError("beside patternProperties is not enforced")
    known = {name: one for name, one in schema.get("properties", {}).items() if name in names}
    others = schema.get("additionalProperties", True)
    schema["properties"] = known | {name: others for name in names if name not in known}
    schema["additionalProperties"] = False
    schema.pop("patternProperties", None)


def _match(schema: dict[str, Any], pattern: str) -> None:
    """Allows only properties whose names match."""
    if schema.keys() & {"properties", "patternProperties"}:
        raise ValueError("beside properties is enforced for enum and const only")
    schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
    schema["additionalProperties"] = False
