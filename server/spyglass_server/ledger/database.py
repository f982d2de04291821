"""A server's view of the usage records in the database."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from spyglass_server.database import GENERATIONS, connect, for_writing
from spyglass_server.ledger.chain import ChainHead, Link
from spyglass_server.ledger.migration import migrate
from spyglass_server.ledger.record import Record
from spyglass_server.ledger.reports import RECORD
from spyglass_server.ledger.writing import chain_end, write

T = TypeVar("T")

log = logging.getLogger(__name__)


class Database:
    """A server's view of the database. One thread at a time may use it."""

    def __init__(self, url: str, head: ChainHead) -> None:
        """Connects, and brings the tables up to date.

        Raises:
            ValueError: the database cannot be reached or used; the text is for the operator.
        """
        self._engine, self._head = connect(url), head
        try:
            with for_writing(self._engine).begin() as db:
                migrate(db, head)
                end = chain_end(db, head.server_id)
            self._ends = head.read()
        except Exception as error:
            self._engine.dispose()
            if isinstance(error, SQLAlchemyError):
                raise ValueError(f"the usage database cannot be used: {error}") from error
            raise
        if end not in self._ends:
            log.error("usage records of this server were changed, added or removed: see `spyglass usage verify`")

    def save(self, records: Sequence[Record]) -> None:
        """Writes records that have started or ended, all or none. Raises SQLAlchemyError, OSError."""
        with for_writing(self._engine).begin() as db:
            end = chain_end(db, self._head.server_id)
            end = before = end if end in self._ends else self._ends[0]
            for record in records:
                end = write(db, record, end)
            if end != before:
                self._keep_ends(before, end)
        if end != before:
            self._keep_ends(end, end)

    def _keep_ends(self, now: Link, then: Link) -> None:
        self._ends = now, then
        self._head.write(now, then)

    def ask(self, question: Callable[[sa.Connection], T]) -> T:
        """Runs a query. Raises SQLAlchemyError."""
        with self._engine.connect() as db:
            return question(db)

    def close(self) -> None:
        self._engine.dispose()


def chained(db: sa.Connection, server_id: str) -> "sa.CursorResult[Any]":
    """Returns all closed records of a server in the order of their places; records without one come first."""
    table = GENERATIONS.c
    return db.execution_options(yield_per=1000).execute(
        sa.select(*RECORD, table.position, table.hash)
        .where(table.server_id == server_id, table.finished_s.is_not(None))
        .order_by(sa.func.coalesce(table.position, 0), table.number)
    )
