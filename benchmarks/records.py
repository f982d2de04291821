"""The usage records in a server's database."""

from dataclasses import dataclass

import sqlalchemy as sa

from spyglass_server import database


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A generation in the ledger."""

    request_id: str
    prompt_tokens: int
    tokens: int
    cost_usd: float
    outcome: str
    is_closed: bool


def known(url: str) -> list[Known]:
    """Returns all records of a database, in order."""
    engine = database.connect(url)
    table = database.GENERATIONS.c
    wanted = sa.select(
        table.request_id,
        table.prompt_tokens,
        table.completion_tokens.label("tokens"),
        table.cost_usd,
        table.outcome,
        table.finished_s.is_not(None).label("is_closed"),
    ).order_by(table.number)
    try:
        with engine.connect() as db:
            return [Known(**{**row, "is_closed": bool(row["is_closed"])}) for row in db.execute(wanted).mappings()]
    finally:
        engine.dispose()
