"""Checks that all ranks are alive and carries startup reports, over each follower's connection to the first rank.

A process that ends closes its connection. Both ends send a heartbeat every second, so that a stopped process or a lost
machine is noticed as well. A lost rank cannot be recovered: a rank that notices the loss ends its own process at once,
whatever it is waiting for.
"""

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)

_BEAT_S = 1.0
SILENT_S = 8.0
"""Silence after which a rank is lost."""
JOIN_S = 600.0
"""How long ranks wait for each other while they start and load."""
EXIT_STATUS = 70
_CONNECT_S = 5.0
_FAREWELL_S = 2.0
_LONGEST_LINE = 1 << 16

Lost = Callable[[str], None]


def end_process(reason: str) -> None:
    """Ends this process without waiting for anything."""
    log.critical("%s; this rank ends", reason)
    logging.shutdown()
    os._exit(EXIT_STATUS)


class _Line:
    """A connection between two ranks: JSON objects, one per line, and empty lines as heartbeats."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._file, self._lock = connection, connection.makefile("rb"), threading.Lock()

    def send(self, message: dict[str, Any] | None = None) -> bool:
        """Sends a message, or a heartbeat; returns whether the connection was still open."""
        data = json.dumps(message).encode() if message else b""
        try:
            with self._lock:
                self._connection.sendall(data + b"\n")
        except OSError:
            return False
        return True

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields messages until the connection closes.

        Raises:
            TimeoutError: the other end is silent.
            ValueError: it has sent something that is not a message.
        """
        while True:
            try:
                line = self._file.readline(_LONGEST_LINE)
            except TimeoutError:
                raise
            except OSError:
                return
            if not line.endswith(b"\n"):
                return
            if line != b"\n":
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("a message must be an object")
                yield message

    def beat(self) -> None:
        """Sends heartbeats while the connection is open."""
        while self.send():
            time.sleep(_BEAT_S)

    def close(self) -> None:
        """Closes the connection; only the reader of messages may call this."""
        self._file.close()
        self._connection.close()


class Watch:
    """The first rank's end of all connections.

    Until `guard`, the next `gather` raises the loss of a rank; after that, `on_lost` is called at once.
    """

    def __init__(self, listener: socket.socket, size: int, store_port: int, on_lost: Lost = end_process) -> None:
        """Each follower that connects receives the port of the store."""
        self._listener, self._store_port, self._on_lost = listener, store_port, on_lost
        self._lines: dict[int, _Line] = {}
        self._reports: dict[int, deque[Any]] = {rank: deque() for rank in range(1, size)}
        self._lost = ""
        self._is_guarding = False
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, name="rank-listener", daemon=True).start()

    def gather(self) -> list[Any]:
        """Waits for the next report of every follower; returns them in rank order.

        Raises:
            ValueError: a rank has failed, was lost, or has not reported in time; the text is for the operator.
        """
        deadline = time.monotonic() + JOIN_S
        with self._changed:
            while missing := [rank for rank, reports in self._reports.items() if not reports]:
                if self._lost:
                    raise ValueError(self._lost)
                if (left := deadline - time.monotonic()) <= 0:
                    raise ValueError(f"rank {missing[0]} has not come within {JOIN_S:.0f} s")
                self._changed.wait(left)
            return [reports.popleft() for reports in self._reports.values()]

    def guard(self) -> None:
        """Starts guarding, after the last reports: from now on, a lost rank ends this one.

        Raises:
            ValueError: as `gather`.
        """
        with self._changed:
            if self._lost:
                raise ValueError(self._lost)
            self._is_guarding = True

    def has_met(self, rank: int) -> bool:
        return rank in self._lines

    def lose(self, reason: str) -> None:
        """Handles the loss of a rank."""
        with self._changed:
            self._lost = self._lost or reason
            self._changed.notify_all()
            ends = self._is_guarding
        if ends:
            self._on_lost(reason)

    def dismiss(self) -> None:
        """Dismisses all followers for good; their end is then not a loss."""
        with self._changed:
            self._is_guarding = False
        for line in self._lines.values():
            line.send({"dismissed": True})

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._hear, args=(_Line(connection),), name="rank-watch", daemon=True).start()

    def _hear(self, line: _Line) -> None:
        name = ""
        try:
            messages = line.messages()
            hello = next(messages, {})
            rank = hello.get("rank")
            with self._changed:
                if rank not in self._reports or rank in self._lines:  # or one that reconnects before it was lost
                    return
                self._lines[rank] = line
            name = f"rank {rank} on {hello.get('host')}"
            line.send({"store_port": self._store_port})
            threading.Thread(target=line.beat, name=f"rank-{rank}-beat", daemon=True).start()
            for message in messages:
                if "failed" in message:
                    self.lose(f"{name}: {message['failed']}")
                    return
                with self._changed:
                    self._reports[rank].append(message["report"])
                    self._changed.notify_all()
            self.lose(f"{name} has ended")
        except TimeoutError:
            if name:
                self.lose(f"{name} has said nothing for {SILENT_S:.0f} s")
        except (ValueError, KeyError):
            if name:
                self.lose(f"{name} has sent what is no message")
        finally:
            line.close()


class Tether:
    """A follower's end of its connection. Calls `on_lost` when the first rank is gone."""

    def __init__(self, address: tuple[str, int], rank: int, on_lost: Lost = end_process) -> None:
        """Connects.

        Raises:
            OSError: there is no first rank, or it has not noticed the loss of this one's predecessor yet.
        """
        self._on_lost = on_lost
        self._line = _Line(socket.create_connection(address, _CONNECT_S))
        self._messages = self._line.messages()
        self._line.send({"rank": rank, "host": socket.gethostname()})
        try:
            self.store_port = int(next(self._messages)["store_port"])
        except (StopIteration, ValueError, KeyError) as error:
            self._line.close()
            raise ConnectionError("the first rank has no place for this one") from error
        self._has_failed, self._closed = False, threading.Event()
        threading.Thread(target=self._line.beat, name="beat", daemon=True).start()
        threading.Thread(target=self._hear, name="tether", daemon=True).start()

    def report(self, value: Any) -> None:
        """Sends a report for the first rank to gather."""
        self._line.send({"report": value})

    def fail(self, text: str) -> None:
        """Reports why this rank cannot continue, and waits briefly for delivery; the process must then end."""
        self._has_failed = True
        self._line.send({"failed": text})
        self._closed.wait(_FAREWELL_S)

    def _hear(self) -> None:
        reason = "the first rank has ended"
        try:
            for message in self._messages:
                if "dismissed" in message:
                    os._exit(0)
        except TimeoutError:
            reason = f"the first rank has said nothing for {SILENT_S:.0f} s"
        except ValueError:
            reason = "the first rank has sent what is no message"
        self._closed.set()
        if not self._has_failed:
            self._on_lost(reason)
