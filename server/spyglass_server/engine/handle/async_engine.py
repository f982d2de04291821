"""The engine as the server sees it: submits requests, dispatches their events, and restarts the process when it dies.

When the process dies, its running requests fail at once; a process that hangs is killed.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

from spyglass_server.engine.handle.activity import Activity
from spyglass_server.engine.handle.process import EngineProcess
from spyglass_server.engine.handle.watchdog import Pulse, Watchdog
from spyglass_server.engine.messages import (
    Alive,
    CancelChoice,
    CancelRequest,
    EngineInfo,
    EngineRequest,
    Event,
    LoadFailed,
    Message,
    Ready,
    RequestFailed,
    RequestScheduled,
    StepEvents,
    StepStats,
    Submit,
)
from spyglass_server.engine.worker.main import EngineLoader

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.2
_LAST_BACKOFF_S = 30.0
_TICK_S = 1.0
_STOP_S = 0.5
"""How long the process may take to exit before it is killed: once the server stops, its current step is of no use."""


class EngineLoadError(Exception):
    """The model cannot be loaded; the text is for the operator."""


class EngineDied:
    """Sent to a running request when its engine process has ended."""


OnEvent = Callable[[Event | EngineDied], None]


class AsyncEngine:
    """The engine as the server's event loop sees it."""

    def __init__(self, loader: EngineLoader) -> None:
        self._loader = loader
        self.on_ready: Callable[[bool], None] = lambda ready: None
        """Called whenever the engine becomes ready or stops being so."""
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        """Called after each step."""
        self._ids = itertools.count(1)
        self._running: dict[int, OnEvent] = {}
        self._scheduled: set[int] = set()
        """Ids of running requests that the engine has begun."""
        self.activity = Activity()
        self.heard_s = 0.0
        """When the message being handled arrived, on the monotonic clock."""
        self.num_restarts = 0
        """How often the engine process was restarted."""
        self._process: EngineProcess | None = None
        self._info: EngineInfo | None = None
        self._ready = asyncio.Event()
        self.is_loaded = False
        """Whether the current process has loaded the model."""
        self._first: asyncio.Future[None] | None = None
        self._backoff_s = _FIRST_BACKOFF_S
        self._restart: asyncio.TimerHandle | None = None
        self._watchdog = Watchdog()
        self._tick: asyncio.TimerHandle | None = None
        self._stopping = False

    @property
    def info(self) -> EngineInfo:
        """What the engine has loaded; available after `start`."""
        assert self._info is not None, "the engine has not started"
        return self._info

    @property
    def has_info(self) -> bool:
        """Whether the model has been loaded at least once."""
        return self._info is not None

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests: it has loaded the model and does not hang."""
        return self._ready.is_set()

    @property
    def num_scheduled(self) -> int:
        """How many running requests the engine has begun."""
        return len(self._scheduled)

    @property
    def pid(self) -> int | None:
        """The engine process's id; None while there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Waits until the model is loaded; starts the process unless `launch` has done so.

        Raises:
            EngineLoadError: the model cannot be loaded.
        """
        if self._first is None:
            self.launch()
        assert self._first is not None
        await self._first

    def launch(self) -> None:
        """Starts the process, so that it can load while the server does other work before `start`."""
        self._first = asyncio.get_running_loop().create_future()
        self._first.add_done_callback(_look_at)  # it may fail before `start` awaits it
        self._launch()

    def kill(self) -> None:
        """Kills the process, for a server that cannot start."""
        self._stopping = True
        if self._process:
            self._process.kill()

    async def stop(self) -> None:
        """Ends the process; running requests receive `EngineDied`."""
        self._stopping = True
        for timer in (self._restart, self._tick):
            if timer:
                timer.cancel()
        if self._process:
            await self._process.stop(_STOP_S)
            await asyncio.sleep(0)  # lets the process's last message, None, be handled

    async def wait_ready(self) -> None:
        """Waits until the engine can accept requests; returns at once if it already can."""
        await self._ready.wait()

    def next_id(self) -> int:
        """Returns a new request id."""
        return next(self._ids)

    def submit(self, request: EngineRequest, on_event: OnEvent) -> None:
        """Begins a request. `on_event` receives all its events, on the event loop, until `cancel`."""
        if self._process is None:  # it has died since `wait_ready`
            on_event(EngineDied())
            return
        self._running[request.id] = on_event
        self._note_work()
        self._process.send(Submit(request))

    def cancel(self, request_id: int) -> None:
        """Drops a request, which may already have ended; no more of its events are delivered."""
        if self._drop(request_id) and self._process:
            self._process.send(CancelRequest(request_id))

    def cancel_choice(self, request_id: int, index: int) -> None:
        """Drops one choice of a running request."""
        if request_id in self._running and self._process:
            self._process.send(CancelChoice(request_id, index))

    def _launch(self) -> None:
        self._process = EngineProcess(self._loader, self._on_message)

    def _relaunch(self) -> None:
        self.num_restarts += 1
        try:
            self._launch()
        except (OSError, RuntimeError):  # the system is out of memory, processes or threads
            log.exception("the engine process cannot be started")
            self._launch_later()

    def _launch_later(self) -> None:
        self._restart = asyncio.get_running_loop().call_later(self._backoff_s, self._relaunch)
        self._backoff_s = min(self._backoff_s * 2, _LAST_BACKOFF_S)

    def _on_message(self, message: Message | None) -> None:
        match message:
            case StepEvents():
                self.heard_s = time.monotonic()
                if (stats := message.stats) is not None:
                    self.on_step(stats)
                self.activity.note_step(message.num_tokens)
                for event in message:
                    self._dispatch(event)
            case Ready(info):
                self._info = info
                self.is_loaded = True
                self._backoff_s = _FIRST_BACKOFF_S
                self._watchdog = Watchdog()
                self._watch()
                self._set_ready(True)
                if self._first and not self._first.done():
                    self._first.set_result(None)
            case Alive(step_s, since_step_s):
                self._watchdog.hear(step_s)
                self.activity.note_step(ago_s=since_step_s)
            case LoadFailed(text):
                log.error("the model cannot be loaded: %s", text)
                if self._first and not self._first.done():
                    self._stopping = True
                    self._first.set_exception(EngineLoadError(text))
            case None:
                self._ended()

    def _dispatch(self, event: Event) -> None:
        on_event = self._running.get(event.id)
        if on_event is None:
            return  # cancelled while the event was on its way
        if isinstance(event, RequestFailed):
            self._drop(event.id)
        elif isinstance(event, RequestScheduled):
            self._scheduled.add(event.id)
            self._note_work()
        try:
            on_event(event)
        except Exception:  # a fault in one request's handler must not cost the others their events
            log.exception("an event of request %d could not be handled", event.id)
            self.cancel(event.id)
            on_event(RequestFailed(event.id, "its event could not be handled"))

    def _drop(self, request_id: int) -> bool:
        """Forgets a request; returns whether it was known."""
        was_known = self._running.pop(request_id, None) is not None
        self._scheduled.discard(request_id)
        self._note_work()
        return was_known

    def _note_work(self) -> None:
        self.activity.set_work(has_requests=bool(self._running), has_answers=bool(self._scheduled))

    def _watch(self) -> None:
        """Checks the process every second: a stalled one gets no new requests, and a lost one is killed."""
        self._tick = asyncio.get_running_loop().call_later(_TICK_S, self._watch)
        pulse = self._watchdog.tick()
        if pulse is Pulse.LOST and self._process:
            log.error("the engine process hangs; it is ended")
            self._tick.cancel()
            self._process.kill()
        self._set_ready(pulse is Pulse.WELL)

    def _set_ready(self, ready: bool) -> None:
        if ready == self._ready.is_set():
            return
        if ready:
            self._ready.set()
        else:
            self._ready.clear()
        self.on_ready(ready)

    def _ended(self) -> None:
        self._process = None
        self.is_loaded = False
        if self._tick:
            self._tick.cancel()
        self._set_ready(False)
        running, self._running = self._running, {}
        self._scheduled.clear()
        self._note_work()
        for on_event in running.values():
            on_event(EngineDied())
        if self._first and not self._first.done():
            self._stopping = True
            self._first.set_exception(EngineLoadError("the engine process died while it loaded the model"))
        if self._stopping:
            return
        log.error("the engine process died under %d requests; it starts again", len(running))
        self._launch_later()


def _look_at(first: "asyncio.Future[None]") -> None:
    if not first.cancelled():
        first.exception()
