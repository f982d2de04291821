"""A46: frames of HTTP/2 as no client sends them, in floods, at the gRPC server (more: benchmarks/http2_floods.py)."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hpack import Encoder

from contract.doors import Doors, Outcome
from fakes import chat
from spyglass.v1 import options_pb2
from stack import KEY, Stack

FLOOD_S = 5.0
NUM_RESETS = 20_000
NUM_CALLS = 40
HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 1, 3, 4, 6, 9
END_HEADERS = 4


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def headers(key: str | None) -> list[tuple[str, str]]:
    found = [(":method", "POST"), (":scheme", "http"), (":path", "/spyglass.v1.InferenceService/Generate")]
    found += [(":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc")]
    return found if key is None else [*found, ("authorization", f"Bearer {key}")]


def resets(key: str | None) -> Iterator[bytes]:
    encoder = Encoder()
    for number in range(NUM_RESETS):
        opened = frame(HEADERS, END_HEADERS, 2 * number + 1, encoder.encode(headers(key)))
        yield opened + frame(RST_STREAM, 0, 2 * number + 1, (8).to_bytes(4))


def pings() -> Iterator[bytes]:
    return (frame(PING, 0, 0, number.to_bytes(8)) for number in range(NUM_RESETS))


def endless_headers() -> Iterator[bytes]:
    encoder = Encoder()
    yield frame(HEADERS, 0, 1, encoder.encode(headers(None)))
    more = frame(CONTINUATION, 0, 1, encoder.encode([("x", "y" * 1000)], huffman=False))
    for _ in range(NUM_RESETS - 1):
        yield more


def pour(address: str, frames: Iterator[bytes]) -> int:
    """Sends them evenly within `FLOOD_S`; returns how many were taken before the server closed the connection."""
    host, _, port = address.partition(":")
    began, sent = time.monotonic(), 0
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        reader = threading.Thread(target=_read_away, args=(connection,))
        reader.start()
        try:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
            for each in frames:
                connection.sendall(each)
                sent += 1
                if sent % 50 == 0:
                    time.sleep(max(0.0, began + sent * FLOOD_S / NUM_RESETS - time.monotonic()))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the reader
            reader.join()
    return sent


def _read_away(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resets by a stranger", "resets by somebody with a key", "pings", "endless headers"])
def test_a46_floods_of_frames(stack: Stack, doors: Doors, kind: str) -> None:
    """40 calls of others, made while it goes on, all end well."""
    frames = {
        "resets by a stranger": lambda: resets(None),
        "resets by somebody with a key": lambda: resets(KEY),
        "pings": pings,
        "endless headers": endless_headers,
    }[kind]()
    start = chat("Hi", stopping=options_pb2.Stopping(max_tokens=2))

    def call(number: int) -> Outcome:
        time.sleep(number * FLOOD_S / NUM_CALLS)
        return doors.generate(start)

    with ThreadPoolExecutor(NUM_CALLS + 1) as pool:
        pouring = pool.submit(pour, stack.grpc, frames)
        outcomes = list(pool.map(call, range(NUM_CALLS)))
        sent = pouring.result()
    doors.num_admitted = NUM_CALLS  # threads have counted
    assert [outcome.code for outcome in outcomes] == ["OK"] * NUM_CALLS
    assert sent == NUM_RESETS or kind == "pings"  # these end the connection
