"""The main function of the engine process: read commands, step, send events.

The process loads the runner itself, after it was spawned, so the server never imports torch. It exits when its pipe
closes.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Protocol

from spyglass_common.logs import LogStyle, set_up_logging
from spyglass_common.memory import return_free_memory
from spyglass_server.engine import messages
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.process_name import name_process

log = logging.getLogger(__name__)

PROCESS_NAME = "spyglass-engine"
_BLOCKED_S = 0.001
"""How long the engine waits for commands while all its requests wait for grammars."""
_IDLE_S = 1.0
"""Idle time after which the engine checks its accounts."""


_BEAT_S = 1.0


class _Pulse:
    """Reports every second that this process is alive and how long its step has taken, even while the step blocks."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._step_began: float | None = None
        self._step_ended = time.monotonic()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def send(self, message: messages.Message) -> None:
        """Sends another message between beats."""
        with self._lock:
            self._pipe.send(message)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Times the step that runs within it."""
        self._step_began = time.monotonic()
        yield
        self._step_ended, self._step_began = time.monotonic(), None

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the server is gone
            while True:
                now, began = time.monotonic(), self._step_began
                self.send(messages.Alive(now - began if began else 0.0, now - self._step_ended))
                time.sleep(_BEAT_S)


class EngineLoader(Protocol):
    """Builds the engine inside the child. Pickled across: a dataclass with a `load` method."""

    def load(self) -> tuple[EngineCore, messages.EngineInfo]:
        """Loads the model; may take minutes.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong; the text is for the operator.
        """
        ...


def run_engine(loader: EngineLoader, pipe: Connection, log_style: LogStyle) -> None:
    """The child's main function: loads, then steps until the pipe closes or Shutdown arrives."""
    name_process(PROCESS_NAME)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    set_up_logging("engine", log_style)
    server_is_gone = contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError)
    try:
        core, info = loader.load()
    except (ValueError, OSError) as error:
        log.debug("loading failed", exc_info=True)
        with server_is_gone:
            pipe.send(messages.LoadFailed(str(error)))
        return
    return_free_memory()
    with server_is_gone:
        pipe.send(messages.Ready(info))
        _serve(core, pipe, _Pulse(pipe))
    core.close()


def _serve(core: EngineCore, pipe: Connection, pulse: _Pulse) -> None:
    while True:
        events: list[messages.Event] = []
        if not core.has_work and not pipe.poll(_IDLE_S):
            core.check()  # no request is waiting
        while pipe.poll() or not (core.has_work or events):  # recv blocks while there is nothing to do
            match pipe.recv():
                case messages.Submit(request):
                    events += core.submit(request)
                case messages.CancelRequest(id=request_id):
                    core.cancel(request_id)
                case messages.CancelChoice(id=request_id, index=index):
                    core.cancel(request_id, index)
                case messages.Shutdown():
                    return
        stats = None
        if core.has_work:
            with pulse.step():
                events += core.step()
            stats = core.stats
        if events or stats:
            pulse.send(messages.StepEvents(events, stats))
        elif core.is_blocked:
            pipe.poll(_BLOCKED_S)
