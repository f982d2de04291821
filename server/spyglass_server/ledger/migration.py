"""Brings the database's tables up to date. Nothing is lost, and records still match their chain."""

import time
from dataclasses import asdict, replace

import sqlalchemy as sa

from spyglass_server.database import API_KEYS, GENERATIONS, KEY_CHANGES, METADATA, SCHEMA, SCHEMA_VERSION
from spyglass_server.ledger.chain import START, ChainHead
from spyglass_server.ledger.record import Record
from spyglass_server.ledger.writing import write

_LOCK = 0x5B7961


def migrate(db: sa.Connection, head: ChainHead) -> None:
    """Creates the tables, or brings those of an older version up to date.

    Raises:
        ValueError: a newer version created them.
    """
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))  # other servers may be starting, too
    tables = set(sa.inspect(db).get_table_names())
    if SCHEMA.name in tables:
        version = db.execute(sa.select(SCHEMA.c.version)).scalar_one()
        if version > SCHEMA_VERSION:
            raise ValueError(f"the usage database is of version {version}; this server knows {SCHEMA_VERSION}")
        if version == SCHEMA_VERSION:
            return
        _from_1(db)
    elif GENERATIONS.name in tables:
        _from_0(db, head)
    else:
        METADATA.create_all(db)
        db.execute(sa.insert(SCHEMA).values(version=SCHEMA_VERSION))
    db.execute(sa.insert(KEY_CHANGES).values(number=0))
    db.execute(sa.update(SCHEMA).values(version=SCHEMA_VERSION))


def _from_1(db: sa.Connection) -> None:
    """Adds the tenants and the keys."""
    db.execute(sa.text("ALTER TABLE generations ADD COLUMN tenant TEXT NOT NULL DEFAULT ''"))
    METADATA.create_all(db, tables=[API_KEYS, KEY_CHANGES])


def _from_0(db: sa.Connection, head: ChainHead) -> None:
    """Copies the first version's records; generations still running when it ended are LOST."""
    db.execute(sa.text("DROP INDEX IF EXISTS generations_by_key"))
    db.execute(sa.text("ALTER TABLE generations RENAME TO generations_0"))
    METADATA.create_all(db)
    db.execute(sa.insert(SCHEMA).values(version=SCHEMA_VERSION))
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
                record = replace(record, finished_s=time.time(), outcome="LOST")
            end = write(db, record, end)
        else:
            db.execute(sa.insert(GENERATIONS).values(asdict(record)))
    head.write(START, end)
    db.execute(sa.text("DROP TABLE generations_0"))
