"""The database of usage records, SQLite or PostgreSQL: its tables, their migration, and all that is asked of it.

A record is written when it begins and again when it ends, by its server and number, so that writing it once more
changes nothing. Servers may share a PostgreSQL database: each writes only its own records.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from spyglass_server.ledger.chain import START, ChainHead, Link, link
from spyglass_server.ledger.record import Record, Total

T = TypeVar("T")

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SQLITE_FILE = "usage.sqlite3"
_LOCKED_S = 1.0
"""So long a write waits for another program that has locked the database, before it is tried again later."""
_MIGRATION_LOCK = 0x5B7961
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

_METADATA = sa.MetaData()
_SCHEMA = sa.Table("spyglass_schema", _METADATA, sa.Column("version", sa.Integer, nullable=False))
GENERATIONS = sa.Table(
    "generations",
    _METADATA,
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("queued_s", sa.Double, nullable=False),
    sa.Column("started_s", sa.Double, nullable=False),
    sa.Column("first_token_s", sa.Double),
    sa.Column("finished_s", sa.Double),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("num_images", sa.BigInteger, nullable=False),
    sa.Column("price_input", sa.Double, nullable=False),
    sa.Column("price_output", sa.Double, nullable=False),
    sa.Column("price_cached_input", sa.Double, nullable=False),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger),
    sa.Column("hash", sa.Text),
    sa.Index("generations_by_key", "key_id", "started_s"),
    sa.Index("generations_by_position", "server_id", "position"),
)
_RECORD = [GENERATIONS.c[field.name] for field in fields(Record)]
_WHEN_IT_ENDS = ("first_token_s", "finished_s", "completion_tokens", "cost_usd", "outcome", "position", "hash")


def sqlite_url(folder: Path) -> str:
    """The database in a data folder."""
    return f"sqlite:///{folder / _SQLITE_FILE}"


def connect(url: str) -> sa.Engine:
    """An engine with one connection, for a single thread at a time.

    Raises:
        ValueError: the URL is none of a database that is supported.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if (kind := parsed.get_backend_name()) not in _INSERT:
            raise ValueError(f"the usage ledger is in SQLite or PostgreSQL, not {kind}")
        arguments: dict[str, Any] = {"connect_timeout": 5}
        if kind == "sqlite":
            arguments = {"timeout": _LOCKED_S, "check_same_thread": False}
        engine = sa.create_engine(
            parsed, poolclass=sa.pool.SingletonThreadPool if kind == "sqlite" else sa.pool.QueuePool,
            pool_size=1, pool_pre_ping=kind != "sqlite", connect_args=arguments,
        )  # fmt: skip
    except ModuleNotFoundError as error:
        raise ValueError("a ledger in PostgreSQL needs: pip install 'spyglass[postgres]'") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(f"--ledger-url is not understood: {error}") from error
    if kind == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("BEGIN"))
    return engine


class Database:
    """A server's view of the database. One thread at a time may use it."""

    def __init__(self, url: str, head: ChainHead) -> None:
        """Connects, and brings the tables up to date.

        Raises:
            ValueError: it cannot be reached or used; the text is for the operator.
        """
        self._engine, self._head = connect(url), head
        try:
            with self._engine.begin() as db:
                migrate(db, head)
                end = _end(db, head.server_id)
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
        with self._engine.begin() as db:
            end = _end(db, self._head.server_id)
            end = before = end if end in self._ends else self._ends[0]
            for record in records:
                end = _save(db, record, end)
            if end != before:
                self._keep_ends(before, end)
        if end != before:
            self._keep_ends(end, end)

    def _keep_ends(self, now: Link, then: Link) -> None:
        self._ends = now, then
        self._head.write(now, then)

    def ask(self, question: Callable[[sa.Connection], T]) -> T:
        """Asks something. Raises SQLAlchemyError."""
        with self._engine.connect() as db:
            return question(db)

    def close(self) -> None:
        self._engine.dispose()


def total(db: sa.Connection, key_id: str) -> Total:
    """What a key has used so far."""
    table = GENERATIONS.c
    sums = (sa.func.coalesce(sa.func.sum(column), 0) for column in (table.prompt_tokens, table.completion_tokens))
    cost = sa.func.coalesce(sa.func.sum(table.cost_usd), 0.0)
    count, prompt_tokens, completion_tokens, cost_usd = db.execute(
        sa.select(sa.func.count(), *sums, cost).where(table.key_id == key_id)
    ).one()
    return Total(
        generations=count,
        prompt_tokens=int(prompt_tokens),
        completion_tokens=int(completion_tokens),
        cost_usd=float(cost_usd),
    )


def latest(db: sa.Connection, key_id: str, limit: int) -> list[Record]:
    """A key's latest generations, newest first."""
    table = GENERATIONS.c
    newest = sa.select(*_RECORD).where(table.key_id == key_id).order_by(table.started_s.desc(), table.number.desc())
    return [Record(**row) for row in db.execute(newest.limit(limit)).mappings()]


def chained(db: sa.Connection, server_id: str) -> "sa.CursorResult[Any]":
    """All closed records of a server with their places, in the order of these; those without one come first."""
    table = GENERATIONS.c
    return db.execution_options(yield_per=1000).execute(
        sa.select(*_RECORD, table.position, table.hash)
        .where(table.server_id == server_id, table.finished_s.is_not(None))
        .order_by(sa.func.coalesce(table.position, 0), table.number)
    )


def _end(db: sa.Connection, server_id: str) -> Link:
    table = GENERATIONS.c
    found = db.execute(
        sa.select(table.position, table.hash)
        .where(table.server_id == server_id, table.position.is_not(None))
        .order_by(table.position.desc())
        .limit(1)
    ).first()
    return Link(*found) if found else START


def _save(db: sa.Connection, record: Record, end: Link) -> Link:
    """Writes a record, and returns the end of the chain, which is its place if it has ended only now."""
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


# --- migration -------------------------------------------------------------------------------------


def migrate(db: sa.Connection, head: ChainHead) -> None:
    """Makes the tables, or brings those of an older version up to date; nothing is lost.

    Raises:
        ValueError: they were made by a newer version.
    """
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))  # other servers may start as well
    tables = set(sa.inspect(db).get_table_names())
    if _SCHEMA.name in tables:
        version = db.execute(sa.select(_SCHEMA.c.version)).scalar_one()
        if version > SCHEMA_VERSION:
            raise ValueError(f"the usage database is of version {version}; this server knows {SCHEMA_VERSION}")
        return
    is_old = GENERATIONS.name in tables
    if is_old:
        db.execute(sa.text("DROP INDEX IF EXISTS generations_by_key"))
        db.execute(sa.text("ALTER TABLE generations RENAME TO generations_0"))
    _METADATA.create_all(db)
    db.execute(sa.insert(_SCHEMA).values(version=SCHEMA_VERSION))
    if is_old:
        _take_over(db, head)
        db.execute(sa.text("DROP TABLE generations_0"))


def _take_over(db: sa.Connection, head: ChainHead) -> None:
    """Copies what the first version has kept; what ran when it ended is LOST."""
    columns = {column["name"] for column in sa.inspect(db).get_columns("generations_0")}
    end = START
    for row in db.execute(sa.text("SELECT * FROM generations_0 ORDER BY id")).mappings().all():
        server_id = (row["server_id"] if "server_id" in columns else "") or head.server_id
        record = Record(
            request_id=row["request_id"],
            key_id=row["key_id"],
            model=row["model"],
            queued_s=row["started_s"],
            started_s=row["started_s"],
            prompt_tokens=row["prompt_tokens"],
            cached_tokens=row["cached_tokens"] if "cached_tokens" in columns else 0,
            num_images=0,
            price_input=0.0,
            price_output=0.0,
            price_cached_input=0.0,
            number=row["id"],
            server_id=server_id,
            finished_s=row["finished_s"],
            completion_tokens=row["completion_tokens"],
            cost_usd=row["cost_usd"],
            outcome=row["outcome"],
        )
        if server_id == head.server_id:
            if record.finished_s is None:
                record = _lost(record)
            end = _save(db, record, end)
        else:
            db.execute(sa.insert(GENERATIONS).values(asdict(record)))
    head.write(START, end)


def _lost(record: Record) -> Record:
    values = asdict(record) | {"finished_s": time.time(), "outcome": "LOST"}
    return Record(**values)


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # else what changes tables would be no part of a transaction
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was written once survives a crash of the machine
