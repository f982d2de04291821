"""Writes usage records: each once when it begins, and once when it ends, with its place in the chain."""

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from spyglass_server.database import GENERATIONS
from spyglass_server.ledger.chain import START, Link, link
from spyglass_server.ledger.record import Record

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_WHEN_IT_ENDS = ("first_token_s", "finished_s", "completion_tokens", "cost_usd", "outcome", "position", "hash")


def chain_end(db: sa.Connection, server_id: str) -> Link:
    """Returns the place of the last record that a server has closed."""
    table = GENERATIONS.c
    found = db.execute(
        sa.select(table.position, table.hash)
        .where(table.server_id == server_id, table.position.is_not(None))
        .order_by(table.position.desc())
        .limit(1)
    ).first()
    return Link(*found) if found else START


def write(db: sa.Connection, record: Record, end: Link) -> Link:
    """Writes a record and returns the end of the chain: the record's own place if this write has closed it."""
    table = GENERATIONS.c
    insert = _INSERT[db.dialect.name](GENERATIONS)
    key = [table.server_id, table.number]
    if record.finished_s is None:
        db.execute(insert.values(asdict(record)).on_conflict_do_nothing(index_elements=key))
        return end
    own = link(end, record)
    values = asdict(record) | {"position": own.position, "hash": own.hash}
    written = db.execute(
        insert.values(values)
        .on_conflict_do_update(
            index_elements=key,
            set_={name: values[name] for name in _WHEN_IT_ENDS},
            where=table.finished_s.is_(None),
        )
        .returning(table.number)
    ).all()
    return own if written else end
