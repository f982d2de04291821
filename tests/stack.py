"""A whole Spyglass, run as its users run it: `spyglass serve` with a server, an engine and a bridge.

Owns the child process, its ports and its end, and looks at it from outside: what it printed, which
processes it has (from /proc, so Linux only), and what its usage ledger holds. Knows nothing of requests.
"""

import contextlib
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spyglass_client import Client, SpyglassError

KEY = "sk-end-to-end"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One record of the ledger. `outcome` is empty while the generation runs."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    outcome: str


class Stack:
    """A running `spyglass serve` on free ports of 127.0.0.1."""

    def __init__(self, data_dir: Path, *options: str, key: str | None = KEY) -> None:
        """Starts it and returns when it serves. With `key` None it makes or remembers one by itself.

        Raises:
            AssertionError: it ended, or did not get ready in time.
        """
        http, grpc = free_ports(2)
        self.address = f"127.0.0.1:{http}"
        self.http = f"{'https' if '--http-tls-cert' in options else 'http'}://{self.address}"
        self.grpc = f"127.0.0.1:{grpc}"
        self.key = key or ""
        self.data_dir = data_dir
        self.lines: list[str] = []
        """What it has printed so far; the log is in `log_file`."""
        self.log_file = data_dir / "log.txt"
        data_dir.mkdir(parents=True, exist_ok=True)
        keys = ("--api-key", key) if key else ()
        arguments = ("--http", self.address, "--grpc", self.grpc, "--data-dir", str(data_dir), *keys, *options)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                serve_command(*arguments), env=clean_environ(), stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="serve-output", daemon=True)
        self._reader.start()
        is_told = self._ready.wait(START_TIMEOUT_S)
        if not is_told or self._process.poll() is not None:
            self.kill()
            raise AssertionError(f"it did not start:\n{self.log_file.read_text()}")

    @property
    def openai_url(self) -> str:
        """The base URL of OpenAI's clients."""
        return f"{self.http}/v1/openai"

    @property
    def serve_pid(self) -> int:
        return self._process.pid

    @property
    def server_pid(self) -> int:
        [pid] = [pid for pid in children(self.serve_pid) if "spyglass_server" in command_line(pid)]
        return pid

    @property
    def bridge_pid(self) -> int:
        [pid] = [pid for pid in children(self.serve_pid) if "spyglass_bridge" in command_line(pid)]
        return pid

    def engine_pid(self) -> int:
        """The engine process of the moment."""
        [pid] = filter(is_engine, children(self.server_pid))
        return pid

    def client(self) -> Client:
        """A gRPC client with the key."""
        return Client(self.grpc, api_key=self.key)

    def usage(self) -> list[UsageRow]:
        """All records of the ledger, oldest first; also after the end."""
        with contextlib.suppress(SpyglassError), self.client() as client:
            client.usage()  # answered when all that was recorded before is in the database
        return self.stored_usage()

    def stored_usage(self) -> list[UsageRow]:
        """The records that are in the database, oldest first; the latest may be still on their way."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "usage.sqlite3")) as ledger:
            rows = ledger.execute(
                "SELECT request_id, prompt_tokens, completion_tokens, cost_usd, outcome FROM generations "
                "ORDER BY number"
            )
            return [UsageRow(*row) for row in rows]

    def environ(self, **more: str) -> dict[str, str]:
        """The variables with which commands and examples find it."""
        return clean_environ() | {
            "SPYGLASS_HTTP": self.address,
            "SPYGLASS_GRPC": self.grpc,
            "SPYGLASS_API_KEY": self.key,
            **more,
        }

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it with a signal and returns its exit code; without effect when it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends it at once; its processes are tied to it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("  model"):  # the banner's last line
                self._ready.set()
        self._ready.set()


def serve_command(*options: str) -> tuple[str, ...]:
    """`spyglass serve` of this environment."""
    return (sys.executable, "-m", "spyglass_client", "serve", *options)


def clean_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without settings of Spyglass, and with this environment's programs first."""
    kept = {name: value for name, value in environ.items() if not name.startswith("SPYGLASS_")}
    return kept | {"PATH": program_path(environ)}


def program_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where programs are looked for: beside this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in opened]


def is_engine(pid: int) -> bool:
    """Whether a process is an engine's."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "spyglass-engine\n"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_line(pid: int) -> str:
    """The words of a process's command; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _parent(entry) == pid]


def _parent(entry: Path) -> int | None:
    """The parent of a running process; None when it has ended."""
    try:
        state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(parent) if state != "Z" else None


def descendants(pid: int) -> Iterator[int]:
    """All processes below a process."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def wait_gone(pids: list[int], timeout_s: float = 10.0) -> bool:
    """Waits until these processes, which need not be ours, have ended; tells whether they have."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], timeout_s)[0]:
                return False
        finally:
            os.close(handle)
    return True
