"""Runs engine steps: schedule, execute, commit. When a batch fails, its rows are computed one by one."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial

from spyglass_server.engine.messages import (
    EngineRequest,
    Event,
    ImageEncoded,
    ImageKey,
    ImagesTaken,
    RequestFailed,
    StepStats,
    TokenOutput,
)
from spyglass_server.engine.structured_output import GrammarCompiler, Matcher
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput, Runner
from spyglass_server.engine.worker.scheduler import Scheduler, Step

log = logging.getLogger(__name__)


class EngineCore:
    """Runs requests to completion, one step at a time."""

    def __init__(self, scheduler: Scheduler, runner: Runner, grammars: GrammarCompiler | None = None) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._grammars = grammars
        self._images: dict[ImageKey, set[int]] = {}  # which requests still need an image's pixels
        self._requests: dict[int, EngineRequest] = {}
        self._started: list[tuple[Step, Pending]] = []  # not yet committed, oldest first
        self._encode_s: dict[ImageKey, float] = {}
        """Time spent so far on each image that is being encoded."""
        self.stats: StepStats | None = None
        """What the last step did; None if it had nothing to compute."""
        self.is_blocked = False
        """Whether the last step had nothing to compute because all requests wait for their grammars."""

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._started)

    def submit(self, request: EngineRequest) -> list[Event]:
        """Queues a request and copies its images, so that their shared memory can be freed."""
        self._requests[request.id] = request
        try:
            for image in request.images:
                if image.key not in self._images:
                    self._runner.take_image(image)
                self._images.setdefault(image.key, set()).add(request.id)
            self._scheduler.submit(request, self._matcher(request.grammar))
        except FileNotFoundError as error:  # its cancel, which freed the memory, is about to arrive
            self._forget_ended([request.id])
            return [RequestFailed(request.id, repr(error))]
        except Exception as error:
            return [self._fail(request.id, error)]
        return [ImagesTaken(request.id)] if request.images else []

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """Drops a request, or one of its choices; no effect if it has ended."""
        self._scheduler.cancel(request_id, index)
        self._forget_ended([request_id])

    def step(self) -> list[Event]:
        """Schedules, executes and commits one step.

        If the runner looks ahead, commits the previous step instead, while the device computes this one.
        """
        events: list[Event] = []
        if self._started and not self._scheduler.can_look_ahead:
            events += self._commit_first()
        began_s = time.monotonic()
        step = self._scheduler.schedule()
        self.is_blocked = not (step.rows or step.encode or self._started)
        events += [replace(event, at_s=began_s) for event in step.scheduled]
        encoded = self._encode(step)
        events += encoded
        if step.rows:
            self._started.append((step, self._start(step)))
        if len(self._started) > (self._runner.looks_ahead and bool(step.rows)):
            events += self._commit_first()
        self.stats = self._stats_of(step, encoded) if step.rows or step.encode else None
        return events

    def check(self) -> None:
        """Asserts that all accounts agree."""
        self._scheduler.check()

    def close(self) -> None:
        """Closes the runner; nothing can be computed after this."""
        self._runner.close()

    def _matcher(self, grammar: str) -> Matcher | None:
        if not grammar:
            return None
        assert self._grammars is not None, "there is no compiler of grammars"
        return self._grammars.matcher(grammar)

    def _stats_of(self, step: Step, encoded: Iterable[Event]) -> StepStats:
        scheduler, key = self._scheduler, step.encode
        is_complete = any(isinstance(event, ImageEncoded) for event in encoded)
        return StepStats(
            num_tokens=sum(len(row.tokens) for row in step.rows),
            kv_cache_usage=scheduler.kv_cache_usage,
            image_cache_usage=scheduler.image_cache_usage,
            encode_s=(self._encode_s.pop(key),) if key is not None and is_complete else (),
            **asdict(scheduler.take_counts()),
        )

    def _encode(self, step: Step) -> list[Event]:
        if step.encode is None:
            return []
        began_s = time.monotonic()
        needed_by = self._scheduler.requests_with(step.encode)
        try:
            is_complete = self._runner.encode_image(step.encode, step.encode_into)
        except Exception as error:
            self._encode_s.pop(step.encode, None)
            return [self._fail(request_id, error) for request_id in needed_by]
        ended_s = time.monotonic()
        self._encode_s[step.encode] = self._encode_s.get(step.encode, 0.0) + ended_s - began_s
        if not is_complete:
            return []
        self._scheduler.image_encoded(step.encode)
        return [ImageEncoded(request_id, ended_s) for request_id in needed_by]

    def _start(self, step: Step) -> Pending:
        self._runner.copy_pages(step.copies)
        if not self._runner.looks_ahead:
            return partial(self._runner.execute, step.rows)
        try:
            return self._runner.start(step.rows)
        except Exception as error:
            return partial(_raise, error)

    def _commit_first(self) -> list[Event]:
        """Waits for the oldest started step and commits it."""
        step, pending = self._started.pop(0)
        try:
            outputs = pending()
        except Exception:
            log.exception("a batch of %d rows failed; computing them one by one", len(step.rows))
            outputs = self._execute_one_by_one(step)
        events = self._scheduler.commit(step, outputs)
        self._forget_ended(event.id for event in events if _is_ending(event))
        return events

    def _execute_one_by_one(self, step: Step) -> list[RowOutput]:
        """Isolates the failing rows. Drops steps started since, as they build on the failed one."""
        while self._started:
            later, pending = self._started.pop()
            with contextlib.suppress(Exception):
                pending()
            self._scheduler.retract(later)
        rows = self._scheduler.known_rows(step)
        return [RowOutput() if row is None else _execute_alone(self._runner.execute, row) for row in rows]

    def _fail(self, request_id: int, error: Exception) -> Event:
        log.error("request %d failed", request_id, exc_info=error)
        self._scheduler.cancel(request_id)
        self._forget_ended([request_id])
        return RequestFailed(request_id, repr(error))

    def _forget_ended(self, request_ids: Iterable[int]) -> None:
        """Forgets requests that have ended, and drops pixels that no other request needs."""
        for request_id in request_ids:
            if request_id not in self._requests or self._scheduler.is_alive(request_id):
                continue
            for image in self._requests.pop(request_id).images:
                needed_by = self._images.get(image.key, set())
                needed_by.discard(request_id)
                if not needed_by and self._images.pop(image.key, None) is not None:
                    self._runner.drop_image(image.key)
                    self._encode_s.pop(image.key, None)


def _is_ending(event: Event) -> bool:
    return isinstance(event, RequestFailed) or (isinstance(event, TokenOutput) and event.finish is not None)


def _raise(error: Exception) -> list[RowOutput]:
    raise error


def _execute_alone(execute: Callable[[Sequence[Row]], list[RowOutput]], row: Row) -> RowOutput:
    try:
        return execute([row])[0]
    except Exception as error:
        log.exception("a row of %d tokens at position %d failed", len(row.tokens), row.start)
        return RowOutput(error=repr(error))
