"""One request's path through the engine, from submission to its last token."""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto

from spyglass_server.engine.handle.async_engine import AsyncEngine, EngineDied
from spyglass_server.engine.messages import (
    Drafted,
    EngineRequest,
    Event,
    ImageEncoded,
    ImagesTaken,
    PromptLogprobs,
    RequestFailed,
    RequestScheduled,
    TokenOutput,
)
from spyglass_server.errors import InvalidRequest, SpyglassError, Unavailable

log = logging.getLogger(__name__)

Output = TokenOutput | PromptLogprobs


class _State(Enum):
    SUBMITTED = auto()
    """Queued or prefilling; outputs are held back."""
    STREAMING = auto()
    """Outputs are passed on as they arrive."""


class EngineRun:
    """Receives a request's events on the event loop.

    Outputs are held back until `stream`, because the usage record must be open before any part of an answer is sent.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        request: EngineRequest,
        *,
        on_output: Callable[[Output], None],
        on_images_taken: Callable[[], None],
        grammar_error: InvalidRequest,
    ) -> None:
        """`grammar_error` is the caller's error if the answer cannot continue in its grammar."""
        self._engine = engine
        self._request = request
        self._on_output = on_output
        self._on_images_taken = on_images_taken
        self._grammar_error = grammar_error
        loop = asyncio.get_running_loop()
        self._state = _State.SUBMITTED
        self.num_guessed = self.num_right = 0
        """How many tokens were guessed, and how many of them were right."""
        self.heard_s = 0.0
        """When the output passed to `on_output` arrived from the engine, on the monotonic clock."""
        self.scheduled_s: float | None = None
        self.encoded_s: float | None = None
        """When the engine started the request, and when it had encoded its images."""
        self._held: list[tuple[float, Output]] = []
        self._scheduled: asyncio.Future[int] = loop.create_future()
        self._over: asyncio.Future[None] = loop.create_future()
        # Retrieves the exception: a cancelled caller no longer does, which is no fault.
        self._over.add_done_callback(lambda over: over.cancelled() or over.exception())

    async def wait_scheduled(self) -> int:
        """Submits the request and waits for its first step; returns how many prompt tokens came from the cache.

        Raises:
            SpyglassError: the request failed before that.
        """
        self._engine.submit(self._request, self._on_event)
        await asyncio.wait((self._scheduled, self._over), return_when=asyncio.FIRST_COMPLETED)
        if not self._scheduled.done():
            await self._over
        return self._scheduled.result()

    async def stream(self) -> None:
        """Passes outputs on until `finish`.

        Raises:
            SpyglassError: the request failed.
        """
        self._state = _State.STREAMING
        held, self._held = self._held, []
        for self.heard_s, output in held:
            self._on_output(output)
        await self._over

    def finish(self) -> None:
        """Ends `stream`: the answer is complete, whatever the engine still computes."""
        self._end(None)

    def cancel_choice(self, index: int) -> None:
        """Stops the engine from computing more of a choice."""
        self._engine.cancel_choice(self._request.id, index)

    def close(self) -> None:
        """Drops the request in the engine; no effect if it has ended there."""
        self._engine.cancel(self._request.id)

    def _on_event(self, event: Event | EngineDied) -> None:
        match event:
            case TokenOutput() | PromptLogprobs():
                if self._state is _State.STREAMING:
                    self.heard_s = self._engine.heard_s
                    self._on_output(event)
                else:
                    self._held.append((self._engine.heard_s, event))
            case ImagesTaken():
                self._on_images_taken()
            case Drafted(num_guessed=num_guessed, num_right=num_right):
                self.num_guessed += num_guessed
                self.num_right += num_right
            case RequestScheduled(cached_tokens=cached_tokens, at_s=at_s):
                self.scheduled_s = at_s
                self._scheduled.set_result(cached_tokens)
            case ImageEncoded(at_s=at_s):
                self.encoded_s = at_s
            case RequestFailed(detail=detail, by_grammar=True):
                log.warning("the grammar of request %d failed: %s", self._request.id, detail)
                self._end(self._grammar_error)
            case RequestFailed(detail=detail):
                log.error("request %d failed in the engine: %s", self._request.id, detail)
                self._end(SpyglassError("internal error"))
            case EngineDied():
                self._end(Unavailable("the engine was restarted", reason="engine_restarted", retry_after_s=1.0))

    def _end(self, error: SpyglassError | None) -> None:
        if self._over.done():
            return  # it has ended already, or its task was cancelled and is cleaning up
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)
