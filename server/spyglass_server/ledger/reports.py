"""Queries about usage: sums by tenant, key, model and day, and the latest generations."""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import sqlalchemy as sa

from spyglass_server.database import GENERATIONS
from spyglass_server.ledger.record import Record

RECORD = [GENERATIONS.c[field.name] for field in fields(Record)]

_TABLE = GENERATIONS.c
_DAY_S = 86400


class Group(Enum):
    """What usage is grouped by. Days are those on which generations began, in UTC."""

    TENANT = "tenant"
    KEY = "key_id"
    MODEL = "model"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which generations count; unset fields match all. Times limit their beginnings, in seconds since 1970."""

    tenant: str = ""
    key_id: str = ""
    model: str = ""
    since_s: float | None = None
    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What a group of generations has used; of the first four fields, only those grouped by are set."""

    tenant: str = ""
    key_id: str = ""
    model: str = ""
    day: str = ""
    generations: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    cost_usd: float


def sums(db: sa.Connection, chosen: Filter, groups: tuple[Group, ...] = ()) -> list[Sum]:
    """Returns a sum for each group, in their order; a single total without groups."""
    by = [_group(db, group).label(group.value) for group in groups]
    counted = {
        "prompt_tokens": _TABLE.prompt_tokens,
        "cached_tokens": _TABLE.cached_tokens,
        "completion_tokens": _TABLE.completion_tokens,
        "images": _TABLE.num_images,
    }
    columns = [sa.func.coalesce(sa.func.sum(column), 0).label(name) for name, column in counted.items()]
    cost = sa.func.coalesce(sa.func.sum(_TABLE.cost_usd), 0.0).label("cost_usd")
    ask = sa.select(*by, sa.func.count().label("generations"), *columns, cost).where(*_conditions(chosen))
    rows = db.execute(ask.group_by(*by).order_by(*by) if by else ask).mappings()
    return [Sum(**{name: _plain(name, value) for name, value in row.items()}) for row in rows]


def latest(db: sa.Connection, chosen: Filter, limit: int) -> list[Record]:
    """Returns the latest generations, newest first."""
    newest = sa.select(*RECORD).where(*_conditions(chosen)).order_by(_TABLE.started_s.desc(), _TABLE.number.desc())
    return [Record(**row) for row in db.execute(newest.limit(limit)).mappings()]


def _conditions(chosen: Filter) -> list["sa.ColumnElement[bool]"]:
    conditions: list[sa.ColumnElement[bool]] = []
    if chosen.tenant:
        conditions.append(_tenant() == chosen.tenant)
    if chosen.key_id:
        conditions.append(_TABLE.key_id == chosen.key_id)
    if chosen.model:
        conditions.append(_TABLE.model == chosen.model)
    if chosen.since_s is not None:
        conditions.append(_TABLE.started_s >= chosen.since_s)
    if chosen.until_s is not None:
        conditions.append(_TABLE.started_s < chosen.until_s)
    return conditions


def _tenant() -> "sa.ColumnElement[Any]":
    """The tenant; in records from before tenants existed, the key is its own tenant."""
    return sa.func.coalesce(sa.func.nullif(_TABLE.tenant, ""), _TABLE.key_id)


def _group(db: sa.Connection, group: Group) -> "sa.ColumnElement[Any]":
    match group:
        case Group.TENANT:
            return _tenant()
        case Group.DAY:
            days = _TABLE.started_s / _DAY_S
            return sa.cast(days if db.dialect.name == "sqlite" else sa.func.floor(days), sa.BigInteger)
        case _:
            column: sa.ColumnElement[Any] = _TABLE[group.value]
            return column


def _plain(name: str, value: Any) -> Any:
    match name:
        case "day":
            return datetime.fromtimestamp(value * _DAY_S, UTC).date().isoformat()
        case "cost_usd":
            return float(value)
        case "tenant" | "key_id" | "model":
            return value
        case _:
            return int(value)
