"""The server's database, SQLite or PostgreSQL: its tables, and how to connect to it.

Servers may share a PostgreSQL database: each writes only its own usage records, and all use the same keys.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

SCHEMA_VERSION = 2
_SQLITE_FILE = "usage.sqlite3"
_LOCKED_S = 1.0
"""How long a write waits for another program's lock on the database before it is retried later."""
_KINDS = ("sqlite", "postgresql")
_WRITES = "spyglass_writes"

METADATA = sa.MetaData()
SCHEMA = sa.Table("spyglass_schema", METADATA, sa.Column("version", sa.Integer, nullable=False))
GENERATIONS = sa.Table(
    "generations",
    METADATA,
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.Text, nullable=False, server_default=""),
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
"""One row for each generation. The tenant is empty in records of version 1, where each key was its own."""
API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("hint", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double),
    sa.Column("revoked_s", sa.Double),
)
"""One row for each key; the digest is its SHA-256."""
KEY_CHANGES = sa.Table("api_key_changes", METADATA, sa.Column("number", sa.BigInteger, nullable=False))
"""One row with the number of changes to the keys, from which other servers notice them."""


def sqlite_url(folder: Path) -> str:
    """The URL of the database in a data folder."""
    return f"sqlite:///{folder / _SQLITE_FILE}"


def connect(url: str) -> sa.Engine:
    """Returns an engine with one connection, for a single thread at a time.

    Raises:
        ValueError: the URL is not that of a supported database.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if (kind := parsed.get_backend_name()) not in _KINDS:
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
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def for_writing(engine: sa.Engine) -> sa.Engine:
    """Returns the engine for transactions whose writes depend on what they have read.

    In SQLite, they take the write lock when they begin: a transaction that reads before another one writes can no
    longer write.
    """
    return engine.execution_options(**{_WRITES: True})


def _begin_sqlite(db: sa.Connection) -> None:
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get(_WRITES) else "BEGIN")


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # otherwise changes to tables would not be part of a transaction
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # commits survive a crash of the machine
