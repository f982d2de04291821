"""The usage ledger in SQLite."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from spyglass_server.ledger.ledger import Record, Total

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS generations (
    id INTEGER PRIMARY KEY,
    server_id TEXT NOT NULL DEFAULT '',
    key_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    model TEXT NOT NULL,
    started_s REAL NOT NULL,
    finished_s REAL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS generations_by_key ON generations (key_id, id);
"""


class SqliteLedger:
    """A ledger in a file of its own. Calls never block the event loop: one thread does all the work."""

    def __init__(self, path: Path, server_id: str) -> None:
        """Opens or makes the file. Records that `server_id` left open are closed as LOST: it has crashed."""
        self._server_id = server_id
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._db = self._thread.submit(_connect, path, server_id).result()

    async def open(self, key_id: str, request_id: str, model: str, prompt_tokens: int, cached_tokens: int) -> int:
        """Opens a record and returns its id."""
        row = (self._server_id, key_id, request_id, model, time.time(), prompt_tokens, cached_tokens)

        def work() -> int:
            cursor = self._db.execute(
                "INSERT INTO generations "
                "(server_id, key_id, request_id, model, started_s, prompt_tokens, cached_tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

        return await self._run(work)

    async def close(self, record_id: int, completion_tokens: int, cost_usd: float, outcome: str) -> None:
        """Closes a record: OK, or the name of a status code."""
        row = (time.time(), completion_tokens, cost_usd, outcome, record_id)
        await self._run(
            lambda: self._db.execute(
                "UPDATE generations SET finished_s = ?, completion_tokens = ?, cost_usd = ?, outcome = ? "
                "WHERE id = ? AND finished_s IS NULL",
                row,
            )
        )

    async def total(self, key_id: str) -> Total:
        """What a key has used so far."""
        row = await self._run(
            lambda: self._db.execute(
                "SELECT count(*) AS generations, coalesce(sum(prompt_tokens), 0) AS prompt_tokens, "
                "coalesce(sum(completion_tokens), 0) AS completion_tokens, coalesce(sum(cost_usd), 0.0) AS cost_usd "
                "FROM generations WHERE key_id = ?",
                (key_id,),
            ).fetchone()
        )
        return Total(**row)

    async def latest(self, key_id: str, limit: int) -> list[Record]:
        """A key's latest generations, newest first."""
        rows = await self._run(
            lambda: self._db.execute(
                "SELECT request_id, model, started_s, finished_s, prompt_tokens, cached_tokens, completion_tokens, "
                "cost_usd, outcome FROM generations WHERE key_id = ? ORDER BY id DESC LIMIT ?",
                (key_id, limit),
            ).fetchall()
        )
        return [Record(**row) for row in rows]

    async def aclose(self) -> None:
        """Closes the file after all that was asked for is written."""
        await self._run(self._db.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        # A caller that is cancelled must not take a write with it: what was asked for is done.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))


def _connect(path: Path, server_id: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)  # each statement commits by itself
    db.row_factory = sqlite3.Row  # columns by name
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")  # survives a crash of the process
    db.executescript(_SCHEMA)
    if "server_id" not in {name for (name,) in db.execute("SELECT name FROM pragma_table_info('generations')")}:
        db.execute("ALTER TABLE generations ADD COLUMN server_id TEXT NOT NULL DEFAULT ''")
    db.execute(
        "UPDATE generations SET finished_s = ?, outcome = 'LOST' WHERE finished_s IS NULL AND server_id IN ('', ?)",
        (time.time(), server_id),
    )
    return db
