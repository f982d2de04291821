"""Checks that no usage record of a server was changed, added, removed or duplicated: `spyglass usage verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from spyglass_server.database import connect, sqlite_url
from spyglass_server.ledger.chain import START, ChainHead, Link, link
from spyglass_server.ledger.database import chained
from spyglass_server.ledger.record import Record


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many records are right, and what is wrong, if anything."""

    num_records: int
    fault: str = ""


def verify(folder: Path, server_id: str, url: str | None = None) -> Verdict:
    """Checks the records of the server that owns a data folder; it may be running.

    Raises:
        ValueError: the database or the folder cannot be read.
    """
    engine = connect(url or sqlite_url(folder))
    head = ChainHead(folder, server_id)
    try:
        with engine.connect() as db:
            # Read before the records: records added meanwhile come after this end.
            ends = head.read()
            end = START
            found = [end]
            with chained(db, server_id) as rows:
                for row in rows.mappings():
                    if fault := _fault(row, end):
                        return Verdict(end.position, fault)
                    end = Link(row["position"], row["hash"])
                    if end in ends:
                        found.append(end)
    except SQLAlchemyError as error:
        raise ValueError(f"the usage database cannot be read: {error}") from error
    finally:
        engine.dispose()
    if not any(end in found for end in ends):
        return Verdict(end.position, f"the records end at {end.position}, but {ends[0].position} were written")
    return Verdict(end.position)


def _fault(row: Any, before: Link) -> str:
    """Returns what is wrong with the record that should come next."""
    values = dict(row)
    position, digest = values.pop("position"), values.pop("hash")
    name = f"the record of {values['request_id']!r} (number {values['number']})"
    if position is None:
        return f"{name} was added"
    if position <= before.position:
        return f"{name} is there twice, or was added"
    if position > before.position + 1:
        return f"{position - before.position - 1} records after the {before.position}th were removed"
    if link(before, Record(**values)).hash != digest:
        return f"{name} was changed"
    return ""
