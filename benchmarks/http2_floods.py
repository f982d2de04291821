"""Floods the gRPC server with HTTP/2 frames while other clients make calls.

    python benchmarks/http2_floods.py

In each flood, callers send frames at a given rate and reconnect when the server closes the connection. The floods are
the worst known for HTTP/2: streams that are reset as soon as they are opened, without and with a key; pings;
settings; headers that never end. Meanwhile other clients make calls over gRPC and HTTP, all of which must succeed, and
the server's memory must not grow.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from hpack import Encoder, NeverIndexedHeaderTuple

from bars import Bar, report
from mix import chat
from processes import checkpoint_or_demo
from service import Service
from spyglass_client import AsyncClient, SpyglassError

_KEY = "sk-floods"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GO_AWAY, _CONTINUATION = 0x1, 0x3, 0x4, 0x6, 0x7, 0x9
_END_HEADERS = 0x4
_CANCEL = (8).to_bytes(4)
_MAX_STREAM_ID = 2**31 - 1
_BATCH = 50
_METHOD = "/spyglass.v1.InferenceService/Generate"
_MAX_GROWTH_BYTES = 50_000_000
_MAX_CALL_S = 5.0
_NUM_CALLS = 40
_CALL_TOKENS = 10
_STEP_MS = 10.0


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Builds an HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def call_headers(key: str | None) -> list[tuple[str, str]]:
    """Returns the headers of a Generate call."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", _METHOD), (":authority", "localhost")]
    headers += [("te", "trailers"), ("content-type", "application/grpc")]
    return headers if key is None else [*headers, ("authorization", f"Bearer {key}")]


def resets(key: str | None) -> Iterator[bytes]:
    """Opens and resets a stream, again and again."""
    encoder = Encoder()
    first, again = (encoder.encode(call_headers(key)) for _ in range(2))  # afterwards all are in the server's table
    for stream_id in range(1, _MAX_STREAM_ID, 2):
        opened = frame(_HEADERS, _END_HEADERS, stream_id, first if stream_id == 1 else again)
        yield opened + frame(_RST_STREAM, 0, stream_id, _CANCEL)


def pings() -> Iterator[bytes]:
    """Pings."""
    return (frame(_PING, 0, 0, number.to_bytes(8)) for number in itertools.count())


def settings() -> Iterator[bytes]:
    """Settings, each of which the server must acknowledge."""
    return itertools.repeat(frame(_SETTINGS, 0, 0, (3).to_bytes(2) + (100).to_bytes(4)))


def endless_headers() -> Iterator[bytes]:
    """The headers of one call, a kilobyte more each time, without an end."""
    more = NeverIndexedHeaderTuple("x", "y" * 1000)
    encoder = Encoder()
    yield frame(_HEADERS, 0, 1, encoder.encode(call_headers(None)))
    yield from itertools.repeat(frame(_CONTINUATION, 0, 1, encoder.encode([more], huffman=False)))


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "resets by a stranger": lambda: resets(None),
    "resets by somebody with a key": lambda: resets(_KEY),
    "pings": pings,
    "settings": settings,
    "headers without an end": endless_headers,
}


@dataclass(slots=True)
class Flood:
    """What one caller has sent."""

    num_sent: int = 0
    num_connections: int = 0


async def flood(address: str, frames: Callable[[], Iterator[bytes]], count: int, seconds: float) -> Flood:
    """Sends `count` frames evenly in `seconds`, on one connection for as long as the server keeps it open."""
    host, _, port = address.partition(":")
    sent, began = Flood(), time.monotonic()
    while sent.num_sent < count and time.monotonic() < began + 2 * seconds:
        reader, writer = await asyncio.open_connection(host, int(port))
        sent.num_connections += 1
        reading = asyncio.create_task(_read_away(reader))
        writer.write(_PREFACE + frame(_SETTINGS, 0, 0))
        source = frames()
        with contextlib.suppress(ConnectionError):
            while sent.num_sent < count and not reading.done():
                batch = min(_BATCH, count - sent.num_sent)
                writer.write(b"".join(itertools.islice(source, batch)))
                await writer.drain()
                sent.num_sent += batch
                await asyncio.sleep(max(0.0, began + sent.num_sent * seconds / count - time.monotonic()))
        reading.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return sent


async def _read_away(reader: asyncio.StreamReader) -> None:
    """Returns when the server sends GOAWAY or closes the connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == _GO_AWAY:
                return


@dataclass(slots=True)
class Calls:
    """How the other clients' calls ended."""

    times_s: list[float]
    failures: list[str]


async def calls_of_others(service: Service, seconds: float) -> Calls:
    """Makes calls evenly for `seconds`: every other one over gRPC, the rest through the bridge."""
    calls = Calls([], [])
    async with AsyncClient(service.grpc, api_key=_KEY) as client, aiohttp.ClientSession() as http:

        async def call(number: int) -> None:
            await asyncio.sleep(number * seconds / _NUM_CALLS)
            began = time.monotonic()
            try:
                if number % 2:
                    await client.generate(f"Go on, number {number}.", max_tokens=_CALL_TOKENS)
                else:
                    await _over_http(http, service, number)
            except (SpyglassError, aiohttp.ClientError) as error:
                calls.failures.append(repr(error))
            calls.times_s.append(time.monotonic() - began)

        async with asyncio.TaskGroup() as group:
            for number in range(_NUM_CALLS):
                group.create_task(call(number))
    return calls


async def _over_http(http: aiohttp.ClientSession, service: Service, number: int) -> None:
    headers = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}
    body = chat(number, max_tokens=_CALL_TOKENS, stream=False)
    async with http.post(f"{service.http}/v1/chat/completions", data=body, headers=headers) as response:
        response.raise_for_status()
        await response.read()


async def beside(service: Service, name: str, given: argparse.Namespace) -> list[Bar]:
    """Runs a flood, and measures its effect on other clients."""
    before = _resident_bytes(service.server.pid)
    began = time.monotonic()
    share = given.frames // given.callers
    async with asyncio.TaskGroup() as group:
        pouring = [
            group.create_task(flood(service.grpc, FLOODS[name], share, given.seconds)) for _ in range(given.callers)
        ]
        calling = group.create_task(calls_of_others(service, given.seconds))
    floods, calls = [task.result() for task in pouring], calling.result()
    num_sent, took_s = sum(each.num_sent for each in floods), time.monotonic() - began
    num_connections = sum(each.num_connections for each in floods)
    print(f"{name}: {num_sent:,} sent in {took_s:.1f} s on {num_connections} connection(s)", flush=True)
    grown = _resident_bytes(service.server.pid) - before
    return [
        Bar.none(f"{name}: calls of others that failed", calls.failures),
        Bar.at_least(f"{name}: calls of others", len(calls.times_s) - len(calls.failures), _NUM_CALLS),
        Bar.at_most(f"{name}: the longest of them", max(calls.times_s), _MAX_CALL_S, "s"),
        Bar.at_most(f"{name}: the server's memory grew by", grown / 1e6, _MAX_GROWTH_BYTES / 1e6, "MB"),
        Bar.at_least(f"{name}: frames sent", num_sent, share * given.callers),
    ]


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(service: Service, given: argparse.Namespace) -> list[Bar]:
    """Runs all floods, one after another."""
    await calls_of_others(service, 1.0)  # so that everything that is created once exists
    bars: list[Bar] = []
    for name in given.floods:
        bars += await beside(service, name, given)
    return bars


def main() -> int:
    """Prints a table. Returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint folder (default: the demo model's)")
    parser.add_argument("--frames", type=int, default=20_000, help="of each flood (default: 20,000)")
    parser.add_argument("--callers", type=int, default=1, help="who send them, each on a connection (default: 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for those (default: 5)")
    parser.add_argument("--floods", nargs="+", choices=FLOODS, default=list(FLOODS), help="which (default: all)")
    parser.add_argument("--verbose", action="store_true", help="show what server and bridge log")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint_or_demo(given.model)
        with Service.started(
            model, Path(folder) / "data", step_ms=_STEP_MS, keys=[_KEY], verbose=given.verbose
        ) as service:
            return report(asyncio.run(measure(service, given)))


if __name__ == "__main__":
    sys.exit(main())
