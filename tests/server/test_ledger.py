"""The usage ledger: one record for each generation, whatever fails; on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from spyglass_client.cli import main
from spyglass_server import database
from spyglass_server.errors import Unavailable
from spyglass_server.ledger import Filter, Group, Ledger, Record, Sum, journal, ledger, read_server_id
from spyglass_server.ledger import database as records_database
from spyglass_server.ledger.journal import Journal, JournalFull
from spyglass_server.ledger.verification import verify

SERVER = "server-1"
RECORD = Record(
    request_id="r", key_id="k", model="m", queued_s=1.0, started_s=2.0, prompt_tokens=1_000_000, cached_tokens=0,
    num_images=1, price_input=0.5, price_output=2.0, price_cached_input=0.25,
)  # fmt: skip
K = Filter(key_id="k")
Open = Callable[..., Ledger]


async def total(one: Ledger, chosen: Filter = K) -> Sum:
    """What has been used in all."""
    [used] = await one.sums(chosen)
    return used


@contextlib.contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """Another program in the database, with a transaction."""
    engine = database.connect(url)
    try:
        with engine.begin() as db:
            yield db
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return database.sqlite_url(tmp_path)
    found: str = request.getfixturevalue("postgres")
    with connected(found) as db:
        db.execute(sa.text("DROP SCHEMA public CASCADE"))
        db.execute(sa.text("CREATE SCHEMA public"))
    return found


@pytest.fixture
async def opened(tmp_path: Path, url: str) -> AsyncIterator[Open]:
    """Opens the ledger; as often as one wants, as after crashes."""
    ledgers: list[Ledger] = []

    def open_ledger(server_id: str = SERVER, folder: Path = tmp_path) -> Ledger:
        ledgers.append(Ledger(folder, server_id, url))
        return ledgers[-1]

    yield open_ledger
    for one in ledgers:
        await one.aclose()


def assert_right(folder: Path, url: str, num_records: int) -> None:
    verdict = verify(folder, SERVER, url)
    assert (verdict.fault, verdict.num_records) == ("", num_records)


async def test_a_record_is_opened_and_closed_once(opened: Open, tmp_path: Path, url: str) -> None:
    one = opened()
    record = one.open(RECORD)
    (running,) = await one.latest(K, 5)
    assert (running.finished_s, running.outcome) == (None, "")
    one.close(record.number, 500_000, "OK", first_token_s=3.0)
    one.close(record.number, 70, "INTERNAL")
    (closed,) = await one.latest(K, 5)
    assert (closed.completion_tokens, closed.cost_usd, closed.outcome) == (500_000, 1.5, "OK")
    assert (closed.queued_s, closed.started_s, closed.first_token_s) == (1.0, 2.0, 3.0)
    assert closed.finished_s is not None
    used = Sum(
        generations=1, prompt_tokens=1_000_000, cached_tokens=0, completion_tokens=500_000, images=1, cost_usd=1.5
    )  # fmt: skip
    assert await total(one) == used
    assert await total(one, Filter(key_id="another")) == Sum(
        generations=0, prompt_tokens=0, cached_tokens=0, completion_tokens=0, images=0, cost_usd=0.0
    )
    assert_right(tmp_path, url, 1)


async def test_latest_are_newest_first(opened: Open) -> None:
    one = opened()
    for moment in (1.0, 3.0, 2.0):
        one.open(replace(RECORD, started_s=moment))
    assert [record.started_s for record in await one.latest(K, 2)] == [3.0, 2.0]


async def test_what_a_crash_has_left_is_closed_with_the_tokens_that_were_counted(
    opened: Open, tmp_path: Path, url: str
) -> None:
    one = opened()
    record = one.open(RECORD)
    one.count({record.number: 3})
    one.count({record.number: 500_000})
    again = opened()  # as another process would, after a crash
    (lost,) = await again.latest(K, 5)
    assert (lost.number, lost.outcome, lost.completion_tokens, lost.cost_usd) == (record.number, "LOST", 500_000, 1.5)
    once_more = opened()
    assert await once_more.latest(K, 5) == [lost]
    assert_right(tmp_path, url, 1)


async def test_servers_that_share_a_database_close_only_their_own(opened: Open, tmp_path: Path, url: str) -> None:
    there = opened("server-2", tmp_path / "there")
    there.open(RECORD)
    assert len(await there.latest(K, 1)) == 1
    here = opened()
    (running,) = await here.latest(K, 1)
    assert running.outcome == ""
    here.close(here.open(RECORD).number, 1, "OK")
    assert (await total(here)).generations == 2
    assert_right(tmp_path, url, 1)


async def test_records_wait_for_a_database_that_cannot_be_written(
    opened: Open, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened()
    assert (await total(one)).generations == 0
    monkeypatch.setattr(ledger, "MAX_WAITING", 2)
    monkeypatch.setattr(ledger, "_QUERY_S", 0.3)
    with connected(url) as other:
        sqlite = other.dialect.name == "sqlite"
        other.exec_driver_sql("UPDATE generations SET outcome = ''" if sqlite else "LOCK TABLE generations")
        if sqlite:
            other.exec_driver_sql("UPDATE spyglass_schema SET version = version")
        numbers = [one.open(RECORD).number for _ in range(2)]
        for number in numbers:
            one.check()
            one.close(number, 5, "OK")
        with pytest.raises(Unavailable, match="cannot be written now"):
            one.check()
        with pytest.raises(Unavailable, match="cannot be reached now"):
            await total(one)
    monkeypatch.setattr(ledger, "_QUERY_S", 10)
    assert (await total(one)).completion_tokens == 10
    one.check()
    assert_right(tmp_path, url, 2)


async def test_records_that_the_database_has_not_got_come_into_it_at_the_next_start(
    opened: Open, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as change:
        change.setattr(records_database.Database, "save", fail)
        change.setattr(ledger, "_LAST_TRY_S", 0)
        one = Ledger(tmp_path, SERVER, url)
        one.close(one.open(RECORD).number, 7, "OK")
        await one.aclose()
    assert (await opened().latest(K, 5))[0].completion_tokens == 7
    assert_right(tmp_path, url, 1)


async def test_a_record_that_the_database_refuses_holds_up_no_other(
    opened: Open, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, save = opened(), records_database.Database.save

    def refuse(database: records_database.Database, records: Sequence[Record]) -> None:
        if any(record.request_id == "bad" for record in records):
            raise ValueError("this one cannot be written")
        save(database, records)

    with monkeypatch.context() as change:
        change.setattr(records_database.Database, "save", refuse)
        bad = one.open(replace(RECORD, request_id="bad"))
        one.close(one.open(RECORD).number, 7, "OK")
        one.close(bad.number, 8, "OK")
        async with asyncio.timeout(10):
            while not await asyncio.to_thread(_is_there, url, 7):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
    assert (await total(one)).completion_tokens == 15
    assert_right(tmp_path, url, 2)


def _is_there(url: str, completion_tokens: int) -> bool:
    with connected(url) as db:
        found = db.execute(sa.text("SELECT completion_tokens FROM generations")).scalars().all()
        return completion_tokens in found


def fail(*_: object) -> None:
    raise sa.exc.OperationalError("no", None, Exception("no"))


# --- the chain -------------------------------------------------------------------------------------

FORGERIES = {
    "changed": ("UPDATE generations SET completion_tokens = 99 WHERE position = 2", "was changed"),
    "removed": ("DELETE FROM generations WHERE position = 2", "1 records after the 1th were removed"),
    "the last removed": ("DELETE FROM generations WHERE position = 4", "end at 3, but 4 were written"),
    "doubled": (
        "INSERT INTO generations SELECT server_id, number + 1, tenant, key_id, request_id, model, queued_s, started_s, "
        "first_token_s, finished_s, prompt_tokens, cached_tokens, completion_tokens, num_images, price_input, "
        "price_output, price_cached_input, cost_usd, outcome, position, hash FROM generations WHERE position = 2",
        "is there twice",
    ),
    "added without a place": (
        "INSERT INTO generations SELECT server_id, number + 1, tenant, key_id, request_id, model, queued_s, started_s, "
        "first_token_s, finished_s, prompt_tokens, cached_tokens, completion_tokens, num_images, price_input, "
        "price_output, price_cached_input, cost_usd, outcome, NULL, NULL FROM generations WHERE position = 2",
        "was added",
    ),
    "made to run again": ("UPDATE generations SET finished_s = NULL WHERE position = 3", "records after the 2th"),
    "all removed": ("DELETE FROM generations", "end at 0, but 4 were written"),
}


@pytest.mark.parametrize("way", FORGERIES)
async def test_a_forgery_is_found(way: str, tmp_path: Path, url: str) -> None:
    one = Ledger(tmp_path, SERVER, url)
    for tokens in range(4):
        one.close(one.open(RECORD).number, tokens, "OK")
        assert (await total(one)).generations == tokens + 1
    await one.aclose()
    assert_right(tmp_path, url, 4)
    forgery, fault = FORGERIES[way]
    with connected(url) as db:
        db.execute(sa.text(forgery))
    assert fault in verify(tmp_path, SERVER, url).fault
    again = Ledger(tmp_path, SERVER, url)  # what comes later does not hide it
    again.close(again.open(RECORD).number, 7, "OK")
    await again.aclose()
    assert verify(tmp_path, SERVER, url).fault


async def test_the_end_of_the_chain_cannot_be_forged_without_its_key(tmp_path: Path, url: str) -> None:
    one = Ledger(tmp_path, SERVER, url)
    one.close(one.open(RECORD).number, 1, "OK")
    await one.aclose()
    head = tmp_path / "ledger-head.json"
    head.write_text(head.read_text().replace("[1, ", "[0, "))
    with pytest.raises(ValueError, match="has been changed"):
        verify(tmp_path, SERVER, url)
    assert (tmp_path / "ledger-key").stat().st_mode & 0o777 == 0o600


async def test_the_command_checks_a_data_folder(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["usage", "verify", "--data-dir", str(tmp_path), "--ledger-url", url]
    assert main(words) == 1
    assert "no server has used" in capsys.readouterr().err
    server_id = read_server_id(tmp_path)
    one = Ledger(tmp_path, server_id, url)
    for _ in range(2):
        one.close(one.open(RECORD).number, 3, "OK")
    await one.aclose()
    assert main(words) == 0
    assert capsys.readouterr().out == f"{server_id}: all 2 records are right\n"
    with connected(url) as db:
        db.execute(sa.text("DELETE FROM generations WHERE position = 2"))
    assert main(words) == 1
    assert capsys.readouterr().out == (
        f"{server_id}: the records end at 1, but 2 were written; records before that which are right: 1\n"
    )


# --- the schema of before --------------------------------------------------------------------------

BEFORE = """
CREATE TABLE generations (
    id INTEGER PRIMARY KEY, server_id TEXT NOT NULL DEFAULT '', key_id TEXT NOT NULL, request_id TEXT NOT NULL,
    model TEXT NOT NULL, started_s REAL NOT NULL, finished_s REAL, prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0, outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX generations_by_key ON generations (key_id, id);
INSERT INTO generations VALUES (1, 'server-1', 'k', 'a', 'm', 5.0, 6.0, 10, 2, 7, 0.25, 'OK');
INSERT INTO generations VALUES (2, '', 'k', 'b', 'm', 7.0, NULL, 20, 0, 0, 0, '');
INSERT INTO generations VALUES (3, 'server-2', 'k', 'c', 'm', 8.0, NULL, 30, 0, 0, 0, '');
"""


@pytest.mark.parametrize("with_servers", [True, False])
async def test_the_records_of_the_first_version_are_taken_over(tmp_path: Path, *, with_servers: bool) -> None:
    db = sqlite3.connect(tmp_path / "usage.sqlite3")
    db.executescript(BEFORE)
    if not with_servers:
        db.execute("ALTER TABLE generations DROP COLUMN server_id")
    db.close()
    for _ in range(2):
        one = Ledger(tmp_path, SERVER)
        newest, *others = await one.latest(K, 5)
        await one.aclose()
    assert (newest.request_id, newest.outcome) == ("c", "" if with_servers else "LOST")
    assert [
        (r.request_id, r.prompt_tokens, r.cached_tokens, r.completion_tokens, r.cost_usd, r.outcome) for r in others
    ] == [
        ("b", 20, 0, 0, 0.0, "LOST"),
        ("a", 10, 2, 7, 0.25, "OK"),
    ]
    assert_right(tmp_path, database.sqlite_url(tmp_path), 2 if with_servers else 3)


async def test_the_records_of_version_1_are_kept_with_their_chain(opened: Open, tmp_path: Path, url: str) -> None:
    one = opened()
    one.close(one.open(RECORD).number, 3, "OK")
    [record] = await one.latest(K, 5)
    values = asdict(record)
    del values["tenant"]  # version 1 had none, and this is how it has made the hash
    text = json.dumps([1, "", values], sort_keys=True, separators=(",", ":"))
    with connected(url) as db:
        hashed = db.execute(sa.text("SELECT hash FROM generations")).scalar_one()
        assert hashed == hashlib.sha256(text.encode()).hexdigest()
        for table in ("api_keys", "api_key_changes"):
            db.execute(sa.text(f"DROP TABLE {table}"))
        db.execute(sa.text("ALTER TABLE generations DROP COLUMN tenant"))
        db.execute(sa.text("UPDATE spyglass_schema SET version = 1"))
    again = opened()
    assert await again.latest(K, 5) == [record]
    [used] = await again.sums(Filter(tenant="k"), (Group.TENANT,))
    assert (used.tenant, used.generations, used.completion_tokens) == ("k", 1, 3)
    again.close(again.open(replace(RECORD, tenant="t")).number, 4, "OK")
    assert {each.tenant: each.completion_tokens for each in await again.sums(K, (Group.TENANT,))} == {"k": 3, "t": 4}
    assert_right(tmp_path, url, 2)


async def test_usage_is_summed_up_by_groups(opened: Open) -> None:
    one, day = opened(), 86400.0
    for tenant, key_id, model, started_s, count in (
        ("a", "k", "m", 10 * day, 1),
        ("a", "k2", "m", 11 * day - 1, 2),
        ("b", "k", "n", 11 * day, 4),
        ("b", "k", "n", 11.5 * day, 8),
    ):
        record = replace(RECORD, tenant=tenant, key_id=key_id, model=model, started_s=started_s)
        one.close(one.open(record).number, count, "OK")

    async def tokens(chosen: Filter, *groups: Group) -> dict[str, int]:
        sums = await one.sums(chosen, groups)
        return {
            " ".join(filter(None, (each.tenant, each.key_id, each.model, each.day))): each.completion_tokens
            for each in sums
        }

    assert await tokens(Filter()) == {"": 15}
    assert await tokens(Filter(), Group.TENANT) == {"a": 3, "b": 12}
    assert await tokens(Filter(), Group.KEY) == {"k": 13, "k2": 2}
    assert await tokens(Filter(), Group.MODEL, Group.DAY) == {"m 1970-01-11": 3, "n 1970-01-12": 12}
    assert await tokens(Filter(tenant="a", key_id="k")) == {"": 1}
    assert await tokens(Filter(model="n", since_s=11 * day, until_s=11.5 * day)) == {"": 4}
    assert await tokens(Filter(key_id="nobody"), Group.DAY) == {}
    assert [record.completion_tokens for record in await one.latest(Filter(tenant="b"), 1)] == [8]


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, url: str) -> None:
    await Ledger(tmp_path, SERVER, url).aclose()
    with connected(url) as db:
        db.execute(sa.text("UPDATE spyglass_schema SET version = 99"))
    with pytest.raises(ValueError, match="of version 99"):
        Ledger(tmp_path, SERVER, url)


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense", "postgresql://nobody@127.0.0.1:1/none"])
def test_a_database_that_cannot_be_used_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"ledger|usage"):
        Ledger(tmp_path, SERVER, url)


# --- the journal -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["open", "count", "close", "save"]), st.integers(0, 4)), max_size=60))
def test_a_journal_says_after_a_crash_what_was_written_before(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, running, unsaved, counted = Journal(Path(folder), 4096), list[int](), dict[int, int](), dict[int, int]()
        for number, (what, which) in enumerate(steps, 1):
            try:
                if what == "open":
                    one.open(number, {"request": "r" * 40})
                    running.append(number)
                    counted[number] = 0
                elif what == "count" and running:
                    chosen = running[which % len(running)]
                    one.count({chosen: counted[chosen] + 3})
                    counted[chosen] += 3
                elif what == "close" and running:
                    chosen = running.pop(which % len(running))
                    one.close(chosen, {"tokens": counted[chosen]})
                    unsaved[chosen] = counted.pop(chosen)
                elif what == "save":
                    one.saved(list(unsaved))
                    unsaved.clear()
            except JournalFull:
                assert what in ("open", "count")
                assert len(running) > 1
        again = Journal(Path(folder), 4096)
        left = {number: entries.tokens for number, entries in again.left.items() if entries.closed is None}
        assert left == {number: tokens for number, tokens in counted.items() if number in running}
        closed = {number: entries.closed["tokens"] for number, entries in again.left.items() if entries.closed}
        assert unsaved.items() <= closed.items()
        one.shut()
        again.shut()


def test_a_journal_whose_end_was_torn_keeps_what_came_before(tmp_path: Path) -> None:
    one = Journal(tmp_path, 4096)
    one.open(1, {"a": 1})
    one.count({1: 5})
    used = one._segment.used
    one.count({1: 6})
    one.shut()
    (path,) = tmp_path.glob("*.log")
    data = bytearray(path.read_bytes())
    data[used + 10] ^= 1
    path.write_bytes(data)
    again = Journal(tmp_path, 4096)
    assert again.left[1].tokens == 5
    again.shut()


def test_a_full_disk_refuses_what_is_new_and_keeps_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Journal(tmp_path, 8192)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "_take_blocks", full)
    running = []

    def open_all() -> None:
        for number in range(1, 100):
            one.open(number, {"a": "x" * 100})
            running.append(number)

    def count_all() -> None:
        for tokens in range(10_000):
            one.count({running[0]: tokens})

    for work in (open_all, count_all):
        with pytest.raises(JournalFull, match=r"No space left on device|more generations"):
            work()
    assert len(running) > 3
    for number in running:
        one.close(number, {"tokens": 7, "outcome": "x" * 900})
    again = Journal.__new__(Journal)
    monkeypatch.undo()
    again.__init__(tmp_path, 8192)  # type: ignore[misc]
    assert [entries.closed is not None for entries in again.left.values()] == [True] * len(running)
    one.shut()
    again.shut()
    assert list(tmp_path.glob("*.log"))


async def test_a_journal_forgets_what_is_in_the_database(opened: Open, tmp_path: Path) -> None:
    one = opened()
    running = one.open(RECORD)
    for _ in range(200):
        record = one.open(replace(RECORD, request_id="x" * 128))
        for tokens in range(1, 1000, 1):
            one.count({record.number: tokens})
        one.close(record.number, 999, "OK")
    assert (await total(one)).generations == 201
    one.count({running.number: 4})
    assert len([*(tmp_path / "journal").iterdir()]) <= 2
    again = opened()
    assert (await again.latest(K, 300))[-1].outcome in ("LOST", "OK")
    assert (await total(again)).completion_tokens == 200 * 999 + 4


# --- kill -9 ---------------------------------------------------------------------------------------

CRASHING = """
import sys, random
from pathlib import Path
from spyglass_server.ledger import Ledger
sys.path.insert(0, {tests!r})
from server.test_ledger import RECORD, SERVER
ledger = Ledger(Path({folder!r}), SERVER, {url!r})
print("ready", flush=True)
while True:
    number = ledger.open(RECORD).number
    print("opened", number, flush=True)
    for tokens in range(1, random.randrange(2, 30)):
        ledger.count({{number: tokens}})
        print("sent", number, tokens, flush=True)
    ledger.close(number, tokens, "OK")
    print("closed", number, tokens, flush=True)
"""


def said_before_it_was_killed(folder: Path, url: str, after_s: float) -> list[str]:
    script = CRASHING.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(folder), url=url)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        process.kill()
        said = process.stdout.read().rpartition("\n")[0].splitlines()
    process.wait()
    return said


@pytest.mark.parametrize("seed", range(3))
async def test_kill_9_loses_and_doubles_nothing(tmp_path: Path, url: str, seed: int) -> None:
    chance = random.Random(seed)
    said = [line for _ in range(2) for line in said_before_it_was_killed(tmp_path, url, chance.uniform(0, 0.3))]
    one = Ledger(tmp_path, SERVER, url)
    records = {record.number: record for record in await one.latest(K, 1_000_000)}
    used = await total(one)
    await one.aclose()
    assert used.generations == len(records)
    for line in said:
        what, number, *tokens = line.split()
        record = records[int(number)]
        if what == "closed":
            assert (record.outcome, record.completion_tokens) == ("OK", int(tokens[0]))
        elif what == "sent":
            assert record.completion_tokens >= int(tokens[0])
    opened = sum(line.startswith("opened") for line in said)
    assert opened <= len(records) <= opened + 2
    assert_right(tmp_path, url, len(records))


async def test_records_wait_for_their_turn_while_another_writes(
    opened: Open, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = opened()
    with connected(url) as db:
        db.execute(sa.update(database.KEY_CHANGES).values(number=7))  # as when a key is changed
        one.open(RECORD)
        await asyncio.sleep(0.05)  # it has begun to write
    assert (await total(one)).generations == 1
    assert not caplog.records
