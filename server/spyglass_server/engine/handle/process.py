"""The server's handle on the engine process.

Two threads move messages, so that the event loop never waits for the pipe.

    server: AsyncEngine --commands--> | pipe | --> worker.run_engine: EngineCore
                        <--messages-- |      | <--
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

from spyglass_common.logs import current_style
from spyglass_server.engine.messages import Command, Message, Shutdown
from spyglass_server.engine.worker.main import EngineLoader, run_engine

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "0",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRITON_DEFAULT_FP_FUSION": "1",
}
"""Variables that the child's libraries read when they load, unless the operator has set them.

The child's threads must not spin for long while they wait: on a machine with few cores, that would starve the event
loops of server and bridge. Sleeping at once costs as much time as a small layer, so they spin for about the time from
one layer to the next, some 0.2 ms. Memory is kept from one step to the next, as requesting it from the system again for
each large tensor takes a tenth of the time. Nothing is ever fetched from a model hub.
"""


class EngineProcess:
    """One life of the engine process: from its start to its end.

    Messages are passed to `on_message` on the event loop, in order; a last call with None means that the process has
    ended.
    """

    def __init__(self, loader: EngineLoader, on_message: Callable[[Message | None], None]) -> None:
        """Starts the process. Must be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=run_engine, args=(loader, theirs, current_style()), name="spyglass-engine", daemon=True
        )
        with _child_environment():
            self._process.start()
        theirs.close()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write, name="engine-writer", daemon=True),
            threading.Thread(target=self._read, name="engine-reader", daemon=True),
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # without the reader, no message would report the end
            self._process.kill()
            self._commands.put(None)
            raise

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, command: Command) -> None:
        """Queues a command; never blocks. The command is silently lost if the process has ended."""
        self._commands.put(command)

    def kill(self) -> None:
        """Kills the process, even if it is suspended."""
        self._process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Asks the process to end, and kills it after `timeout_s`."""
        self.send(Shutdown())
        await asyncio.to_thread(self._process.join, timeout_s)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._pipe.recv()
                self._loop.call_soon_threadsafe(self._on_message, message)
        self._commands.put(None)
        self._process.join()
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            self._loop.call_soon_threadsafe(self._on_message, None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (command := self._commands.get()) is not None:
                self._pipe.send(command)


@contextlib.contextmanager
def _child_environment() -> Iterator[None]:
    """Applies `ENVIRONMENT` to children that start within it."""
    added = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
