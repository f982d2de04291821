"""The usage ledger: one record for each generation, whatever fails.

A record is opened before any part of an answer is sent, and closed once, with its tokens and its cost. It goes to the
journal at once; a thread writes it to the database, and retries until that succeeds. Records that a crash has left open
in the journal are closed as LOST, with the tokens counted so far, when the server starts again.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from spyglass_server.config import Prices
from spyglass_server.database import sqlite_url
from spyglass_server.errors import Unavailable
from spyglass_server.ledger import reports
from spyglass_server.ledger.chain import ChainHead
from spyglass_server.ledger.database import Database
from spyglass_server.ledger.journal import Entries, Journal, JournalFull
from spyglass_server.ledger.record import Record
from spyglass_server.ledger.reports import Filter, Group, Sum

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Maximum number of closed records waiting for the database; beyond that, new generations are refused."""
_RETRY_S = (0.1, 1.0)
"""First and longest delay between attempts to reach the database."""
_LAST_TRY_S = 5.0
"""How long the server's shutdown waits for the database; unwritten records stay in the journal."""
_QUERY_S = 10.0
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class _Query:
    """A query, run after all earlier writes."""

    ask: Callable[[Connection], Any]
    answer: "asyncio.Future[Any]"


class Ledger:
    """The ledger of one server. Only queries wait for the database."""

    def __init__(self, folder: Path, server_id: str, url: str | None = None) -> None:
        """Opens the database at `url`, a file in `folder` by default, and closes records that a crash has left.

        Raises:
            ValueError: the database cannot be reached or used; the text is for the operator.
            OSError: the journal cannot be written.
        """
        self._server_id = server_id
        self._database = Database(url or sqlite_url(folder), ChainHead(folder, server_id))
        self._journal = Journal(folder / "journal")
        self._live: dict[int, Record] = {}
        self._last_number = 0
        self._queue: queue.SimpleQueue[Record | _Query | None] = queue.SimpleQueue()
        self._waiting: list[Record] = []
        self._num_waiting = 0
        """Closed records that are not in the database yet, including queued ones."""
        self._count_lock = threading.Lock()
        for number, entries in self._journal.left.items():
            self._queue.put(_left(number, entries))
            self._num_waiting += 1
        self._ends_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Checks that a generation may begin.

        Raises:
            Unavailable: too many records wait for the database.
        """
        if self._num_waiting >= MAX_WAITING:
            raise _unavailable("the usage ledger cannot be written now")

    def open(self, record: Record) -> Record:
        """Opens a record, which gets its number.

        Raises:
            Unavailable: it cannot be written.
        """
        self._last_number = max(self._last_number + 1, time.time_ns() // 1000)
        record = replace(record, number=self._last_number, server_id=self._server_id)
        try:
            self._journal.open(record.number, asdict(record))
        except JournalFull as error:
            log.error("a generation cannot be recorded: %s", error)
            raise _unavailable("the usage ledger cannot be written now") from error
        self._live[record.number] = record
        self._queue.put(record)
        return record

    def count(self, completion_tokens: Mapping[int, int]) -> None:
        """Saves token counts of running generations, by their numbers; to be called before the tokens are sent.

        Raises:
            Unavailable: the counts cannot be written, so the tokens must not be sent.
        """
        try:
            self._journal.count(completion_tokens)
        except JournalFull as error:
            log.error("tokens cannot be recorded: %s", error)
            raise _unavailable("the usage ledger cannot be written now") from error

    def close(self, number: int, completion_tokens: int, outcome: str, first_token_s: float | None = None) -> None:
        """Closes a record with the outcome OK or the name of a status code; no effect on a closed one."""
        if (record := self._live.pop(number, None)) is None:
            return
        record = _closed(record, completion_tokens, outcome, first_token_s=first_token_s, finished_s=time.time())
        changed = ("completion_tokens", "cost_usd", "outcome", "first_token_s", "finished_s")
        self._journal.close(number, {name: getattr(record, name) for name in changed})
        with self._count_lock:
            self._num_waiting += 1
        self._queue.put(record)

    async def sums(self, chosen: Filter, groups: tuple[Group, ...] = ()) -> list[Sum]:
        """Returns the usage so far, by groups.

        Raises:
            Unavailable: the database cannot be reached.
        """
        return await self._ask(lambda db: reports.sums(db, chosen, groups))

    async def spent(self, key_id: str, since_s: float) -> float:
        """Returns what a key has spent, in US dollars, on generations begun since a time; raises as `sums` does."""
        [total] = await self.sums(Filter(key_id=key_id, since_s=since_s))
        return total.cost_usd

    async def latest(self, chosen: Filter, limit: int) -> list[Record]:
        """Returns the latest generations, newest first.

        Raises:
            Unavailable: the database cannot be reached.
        """
        return await self._ask(lambda db: reports.latest(db, chosen, limit)) if limit else []

    async def aclose(self) -> None:
        """Closes the ledger once everything is written, or after waiting in vain for the database."""
        self._ends_at = time.monotonic() + _LAST_TRY_S
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._journal.shut()

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        query = _Query(ask, asyncio.get_running_loop().create_future())
        self._queue.put(query)
        try:
            async with asyncio.timeout(_QUERY_S):
                found: T = await query.answer
                return found
        except (TimeoutError, SQLAlchemyError) as error:
            log.error("the usage database does not answer: %r", error)
            raise _unavailable("the usage database cannot be reached now") from error

    # --- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        """Writes records, all waiting ones at once, and runs queries in between."""
        is_over, pause = False, 0.0
        while not is_over:
            queries, is_over = self._take(pause)
            is_saved = self._save()
            pause = 0.0 if is_saved else min(2 * pause, _RETRY_S[1]) or _RETRY_S[0]
            for query in queries:
                self._answer(query, is_saved=is_saved)
            if is_over and not is_saved:
                assert self._ends_at is not None
                is_over = time.monotonic() > self._ends_at
                self._queue.put(None)
        if self._waiting:
            log.error("%d usage records are in the journal, not in the database", len(self._waiting))
        self._database.close()

    def _take(self, pause_s: float) -> tuple[list[_Query], bool]:
        """Empties the queue, blocking if no records wait; returns the queries, and whether the end has come."""
        queries: list[_Query] = []
        block = not self._waiting
        time.sleep(pause_s)
        while True:
            try:
                item = self._queue.get(block)
            except queue.Empty:
                return queries, False
            block = False
            match item:
                case None:
                    return queries, True
                case _Query():
                    queries.append(item)
                case Record():
                    self._waiting.append(item)

    def _save(self) -> bool:
        """Writes the waiting records; returns whether none are left."""
        waiting, self._waiting = self._waiting, []
        try:
            self._write(waiting)
        except (OperationalError, OSError) as error:
            log.error("%d usage records cannot be written yet: %s", len(waiting), error)
            self._waiting = waiting
        except Exception:
            # One record is at fault, or all are: the others must not wait behind it.
            self._waiting = [record for record in waiting if not self._write_alone(record)]
        return not self._waiting

    def _write(self, records: list[Record]) -> None:
        if not records:
            return
        closed = [record.number for record in records if record.finished_s is not None]
        if closed:
            self._journal.sync()
        self._database.save(records)
        with self._count_lock:
            self._num_waiting -= len(closed)
        self._journal.saved(closed)

    def _write_alone(self, record: Record) -> bool:
        try:
            self._write([record])
        except Exception:
            log.exception("the usage record %d of %r cannot be written yet", record.number, record.request_id)
            return False
        return True

    def _answer(self, query: _Query, *, is_saved: bool) -> None:
        found: Any = None
        failure: Exception | None = None
        try:
            if not is_saved:  # the answer would miss earlier writes
                raise _unavailable("the usage database cannot be reached now")
            found = self._database.ask(query.ask)
        except Exception as error:
            failure = error

        def tell() -> None:
            if query.answer.done():  # the caller no longer waits
                return
            if failure is not None:
                query.answer.set_exception(failure)
            else:
                query.answer.set_result(found)

        query.answer.get_loop().call_soon_threadsafe(tell)


def _closed(
    record: Record, completion_tokens: int, outcome: str, *, first_token_s: float | None, finished_s: float
) -> Record:
    prices = Prices(input=record.price_input, output=record.price_output, cached_input=record.price_cached_input)
    return replace(
        record,
        completion_tokens=completion_tokens,
        cost_usd=prices.cost(record.prompt_tokens, record.cached_tokens, completion_tokens),
        outcome=outcome,
        first_token_s=first_token_s,
        finished_s=finished_s,
    )


def _left(number: int, entries: Entries) -> Record:
    """Returns the record of a generation that an earlier process has left."""
    record = Record(**entries.opened)
    if entries.closed is not None:
        return replace(record, **entries.closed)
    return _closed(record, entries.tokens, "LOST", first_token_s=None, finished_s=time.time())


def _unavailable(text: str) -> Unavailable:
    return Unavailable(text, reason="ledger_unavailable", retry_after_s=_RETRY_AFTER_S)
