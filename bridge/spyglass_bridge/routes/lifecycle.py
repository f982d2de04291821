"""The lifecycle of a request answered by generations: start them, send images, answer at once or as a stream.

An answer's headers are sent only after all of its generations have started, so that a refusal gets its own status.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge import sse
from spyglass_bridge.body import LargeBody, read_json_body
from spyglass_bridge.errors import ApiError, from_status, internal_error
from spyglass_bridge.images import send_images
from spyglass_bridge.joined import Joined
from spyglass_bridge.openai.large_bodies import check_rest, set_aside
from spyglass_bridge.openai.serialization import compact_json
from spyglass_bridge.openai.translation import CallContext, Submission
from spyglass_bridge.remote_generation import RemoteGeneration, Update
from spyglass_bridge.services import (
    CALLER_KEY,
    HELD_BYTES,
    RATE_LIMITS,
    REQUEST_ID,
    SERVICES,
    STREAM_ERROR,
    TENANT,
    TRACEPARENT,
    Services,
)
from spyglass_common.cancellation import to_the_end
from spyglass_common.deltas import ChoiceDelta
from spyglass_common.limits import MAX_IDEMPOTENCY_KEY_CHARACTERS

# The server ends a generation at its deadline; the bridge does so only if the server did not.
_GRACE_S = 0.5
# How long an error event may take to reach a slow client.
_LAST_WORDS_S = 1.0

STALLED_S = 60.0
"""How long a client may read nothing before it is dropped."""

_IDEMPOTENCY_KEY = "Idempotency-Key"
# Serializing an answer with the logprobs of more tokens than this, or with their attention, on the event loop would
# stall other streams.
_LARGE_ANSWER_TOKENS = 1000

_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Encoder(Protocol):
    """Produces the JSON texts of a stream's events."""

    def begin(self) -> list[str]:
        """Returns the first events."""
        ...

    def deltas(self, deltas: Sequence[ChoiceDelta]) -> list[str]:
        """Returns the events for further deltas of the choices."""
        ...

    def end(self, finished: pb.Finished) -> list[str]:
        """Returns the last events, once everything has ended well."""
        ...


class Builder(Protocol):
    """Gathers an answer that is returned as a whole."""

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Adds further deltas of the choices."""

    def build(self, finished: pb.Finished) -> dict[str, object]:
        """Returns the answer; called once, when everything has ended well."""
        ...


class Source(Protocol):
    """Where an answer comes from."""

    async def next(self) -> Update:
        """Waits for an update; the last one has `finished`."""
        ...


Read = Callable[[bytes, CallContext], T]
"""Parses the body of a request."""


async def read_request(request: web.Request, read: "Read[T]") -> T:
    """Reads and parses the body. Large bodies are read and parsed in turns between tenants."""
    services = request.app[SERVICES]
    config = services.config
    key = request.headers.get(_IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS and key.isprintable()):
        message = f"{_IDEMPOTENCY_KEY} has 1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable characters."
        raise ApiError(400, message, code="invalid_idempotency_key")
    turn = partial(services.large_bodies.hold, request[TENANT])
    body = await read_json_body(request, config.max_body_bytes, request[HELD_BYTES], turn)
    context = CallContext(
        request_id=request[REQUEST_ID],
        caller_key=request[CALLER_KEY],
        timeout_s=config.request_timeout_s,
        max_image_bytes=config.max_image_bytes,
        idempotency_key=key,
        traceparent=request.get(TRACEPARENT, ""),
    )
    if isinstance(body, bytes):
        return read(body, _with_digest(context, body))
    async with turn():  # parsing it here would stall other streams
        return await to_the_end(asyncio.to_thread(_read_large, body, context, read))


def _with_digest(context: CallContext, body: bytes | memoryview) -> CallContext:
    return replace(context, body_digest=hashlib.sha256(body).digest()) if context.idempotency_key else context


def _read_large(body: LargeBody, context: CallContext, read: "Read[T]") -> T:
    context = _with_digest(context, body.view())
    rest, pictures = set_aside(body)
    found = read(rest, replace(context, set_aside=pictures))
    if pictures.all_used:
        return found
    check_rest(body.size)  # what looked like images is something else, so parse everything
    return read(bytes(body.view()), context)


async def answer_at_once(
    request: web.Request, submissions: Sequence[Submission], n: int, builder: Builder
) -> web.Response:
    """Answers with one object. Each submission has `n` choices."""
    services = request.app[SERVICES]
    deadline = _deadline(services)
    async with _started(request, submissions, n, deadline) as source, _until(deadline):
        return await _gather(source, builder)


async def answer_as_stream(
    request: web.Request, submissions: Sequence[Submission], n: int, encoder: Encoder
) -> web.StreamResponse:
    """Answers with events. Each submission has `n` choices."""
    services = request.app[SERVICES]
    deadline = _deadline(services)
    async with _started(request, submissions, n, deadline) as source:
        return await _stream(request, source, encoder, deadline)


def _deadline(services: Services) -> float:
    return asyncio.get_running_loop().time() + services.config.request_timeout_s + _GRACE_S


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """Raises ApiError 504 if the deadline comes first."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise _timed_out() from None


@asynccontextmanager
async def _started(
    request: web.Request, submissions: Sequence[Submission], n: int, deadline: float
) -> AsyncIterator[Source]:
    """Starts the generations of all submissions and yields them as one source once they have started."""
    services = request.app[SERVICES]
    async with AsyncExitStack() as stack:
        generations = [
            await stack.enter_async_context(services.backend.generate(submission.start)) for submission in submissions
        ]
        async with _until(deadline):
            await _start_all(services, request[TENANT], generations, submissions)
        for submission in submissions:
            submission.forget()
        request[HELD_BYTES].release()
        for generation in generations:
            if generation.rate_limits is not None:
                request[RATE_LIMITS] = generation.rate_limits
        if len(generations) == 1:
            yield generations[0]
        else:
            yield await stack.enter_async_context(Joined.of(generations, n))


async def _start_all(
    services: Services, tenant: str, generations: Sequence[RemoteGeneration], submissions: Sequence[Submission]
) -> None:
    """Waits until all have started. The first refusal is the answer to them all."""
    if len(submissions) == 1:
        await _start(services, tenant, generations[0], submissions[0])
        return
    try:
        async with asyncio.TaskGroup() as group:
            for generation, submission in zip(generations, submissions, strict=True):
                group.create_task(_start(services, tenant, generation, submission))
    except* ApiError as errors:
        raise errors.exceptions[0] from None


async def _start(services: Services, tenant: str, generation: RemoteGeneration, submission: Submission) -> None:
    if not await send_images(generation, submission.images, services.fetcher, tenant):
        _check(await generation.next())


async def _gather(source: Source, builder: Builder) -> web.Response:
    is_large = False
    while True:
        update = await source.next()
        _check(update)
        builder.add(update.deltas)
        is_large = is_large or any(delta.attention for delta in update.deltas)
        if update.finished is not None:
            usage = update.finished.usage
            if is_large or usage.prompt_tokens + usage.completion_tokens > _LARGE_ANSWER_TOKENS:
                answer = await asyncio.to_thread(_written, builder, update.finished)
            else:
                answer = _written(builder, update.finished)
            return web.Response(text=answer, content_type="application/json")


def _written(builder: Builder, finished: pb.Finished) -> str:
    return compact_json(builder.build(finished))


async def _stream(request: web.Request, source: Source, encoder: Encoder, deadline: float) -> web.StreamResponse:
    response = web.StreamResponse(headers=_SSE_HEADERS)
    try:
        await response.prepare(request)
        with closing(_Writer(request, response)) as writer:
            async with asyncio.timeout_at(deadline):
                await _write_events(writer, source, encoder)
    except ConnectionResetError:
        _log.info("%s: the client left", request[REQUEST_ID])
    except TimeoutError:
        await _write_last_words(request, response, _timed_out())
    except ApiError as error:
        await _write_last_words(request, response, error)
    except Exception:
        _log.exception("%s failed in its stream", request[REQUEST_ID])
        await _write_last_words(request, response, internal_error())
    return response


class _Writer:
    """Writes to a client; one that reads nothing for a while is dropped, as if it had left. `close` it at the end.

    One timer covers all writes: a timeout around each would cost more than most of the writes do.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request, self._response = request, response
        self._loop = asyncio.get_running_loop()
        self._waits_since: float | None = None
        self._timer = self._loop.call_later(STALLED_S, self._look)

    async def write(self, data: bytes) -> None:
        self._waits_since = self._loop.time()
        await self._response.write(data)
        self._waits_since = None

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        waits_s = 0.0 if self._waits_since is None else self._loop.time() - self._waits_since
        if waits_s < STALLED_S:
            self._timer = self._loop.call_later(STALLED_S - waits_s, self._look)
            return
        _log.warning("%s: the client has read nothing for %.0f s", self._request[REQUEST_ID], STALLED_S)
        if self._request.transport is not None:
            self._request.transport.abort()


async def _write_events(writer: _Writer, source: Source, encoder: Encoder) -> None:
    """Writes once per update, so that the events of one frame leave together."""
    if first := encoder.begin():
        await writer.write(sse.frame(*first))
    while True:
        update = await source.next()
        events = encoder.deltas(update.deltas)
        if update.finished is None:
            if events:
                await writer.write(sse.frame(*events))
            continue
        if update.finished.HasField("error"):
            if events:
                await writer.write(sse.frame(*events))
            raise from_status(update.finished.error)
        await writer.write(sse.frame(*events, *encoder.end(update.finished)) + sse.DONE)
        return


async def _write_last_words(request: web.Request, response: web.StreamResponse, error: ApiError) -> None:
    """Ends a stream with an error event and without [DONE]; disconnects a client that does not read."""
    request[STREAM_ERROR] = error.http_status
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            await response.write(sse.frame(compact_json(error.body)))
            await response.write_eof()
    except (TimeoutError, ConnectionResetError):
        if request.transport is not None:
            request.transport.abort()


def _check(update: Update) -> None:
    """Raises the ApiError of a failed generation."""
    if update.finished is not None and update.finished.HasField("error"):
        raise from_status(update.finished.error)


def _timed_out() -> ApiError:
    return ApiError(504, "The generation took too long.", code="timeout")
