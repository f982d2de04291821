"""JSON schemas as zod and pydantic write them: enforced, or refused with the reason."""

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    Json,
    PastDate,
    SecretStr,
    TypeAdapter,
)

from grammars import lets_through, schema_grammar, valid_answers
from spyglass_server.errors import InvalidRequest


def refusal(schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        schema_grammar(schema)
    return caught.value.message.removeprefix("this format cannot be enforced: ")


def takes(schema: Any, value: Any) -> bool:
    return lets_through(schema_grammar(schema), json.dumps(value))


ZOD: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "zod_schemas.json").read_text())
LOOK_AROUND = "look-around, including look-ahead and look-behind, is not supported"
ZOD_REFUSED = {
    "record of uuid": "#: propertyNames with several constraints is not enforced",
    "iso.duration": LOOK_AROUND,
    "emoji": LOOK_AROUND,
    "hostname": LOOK_AROUND,
}
"""With what zod 4.6 writes."""


@pytest.mark.parametrize("name", ZOD)
def test_schemas_that_zod_writes(name: str) -> None:
    if name in ZOD_REFUSED:
        assert refusal(ZOD[name]).endswith(ZOD_REFUSED[name])
    else:
        assert valid_answers(ZOD[name])


def test_a_record_is_what_zod_means() -> None:
    assert takes(ZOD["record"], {"any name": 1.5, "other": 2})
    assert takes(ZOD["record of enum"], {"a": True, "b": False})
    assert not takes(ZOD["record of enum"], {"a": True})
    assert takes(ZOD["partial record"], {"b": True})
    assert not takes(ZOD["partial record"], {"c": True})
    assert takes(ZOD["record of int keys"], {"12": "a"})
    assert not takes(ZOD["record of int keys"], {"x": "a"})


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, le=10)


class Square(BaseModel):
    """A square."""

    kind: Literal["square"]
    side: Annotated[int, Field(multiple_of=5, ge=0)] = 5


class Drawing(BaseModel):
    model_config = ConfigDict(title="A drawing", json_schema_extra={"examples": [{"shape": {"kind": "circle"}}]})

    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    background: Colour | None = Field(None, description="None is white", deprecated=True, examples=["red"])
    parts: Annotated[list["Drawing"], Field(max_length=1)] = []


TAKEN = [
    *(str, int, float, bool, bytes, None, Any, object, Decimal, Path, SecretStr, dict, list),
    *(AnyUrl, HttpUrl, IPv4Address, IPv6Address, IPv4Network, UUID, date, datetime, time, timedelta, AwareDatetime),
    *(list[int], tuple[int, str], tuple[float, ...], Colour, Literal["a", 1, None], int | None, str | int | list[bool]),
    *(dict[str, int], dict[str, dict[str, Any]], dict[Literal["a", "b"], int], dict[Colour, float], dict[UUID, int]),
    *(dict[date, str], dict[Annotated[str, Field(pattern="^[a-z]{2}$")], int], dict[int, bool], Drawing, Circle),
    Annotated[str, Field(min_length=2, max_length=5)],
    Annotated[str, Field(pattern=r"^\d{3}-\w+$")],
    Annotated[Decimal, Field(max_digits=5, decimal_places=2)],
    Annotated[list[str], Field(min_length=1, max_length=2)],
    Base64Bytes,
    Json,
    PastDate,
]
"""Types whose schemas, as pydantic writes them, are enforced."""


@pytest.mark.parametrize("kind", TAKEN, ids=str)
def test_schemas_that_pydantic_writes(kind: Any) -> None:
    assert valid_answers(TypeAdapter(kind).json_schema())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (set[int], "#: uniqueItems is not enforced"),
        (dict[str, frozenset[str]], "#/additionalProperties: uniqueItems is not enforced"),
        (dict[IPv4Address, int], "#: propertyNames with format is not enforced"),
    ],
)
def test_schemas_of_pydantic_that_are_refused(kind: Any, reason: str) -> None:
    assert refusal(TypeAdapter(kind).json_schema()) == reason
