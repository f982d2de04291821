"""POST /v1/chat/completions: one generation, as one object or as a stream of chunks.

Owns the life of a request: read, start, send images, answer. An answer's headers are not sent before
the generation has started, so that a refusal gets its own status.
"""

import asyncio
import logging

from aiohttp import web

from spyglass_bridge import sse
from spyglass_bridge.body import read_json_body
from spyglass_bridge.errors import ApiError, from_status, internal_error
from spyglass_bridge.generation import Update
from spyglass_bridge.images import send_images
from spyglass_bridge.link import LinkedGeneration
from spyglass_bridge.openai.answers import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm, compact_json
from spyglass_bridge.openai.requests import ChatRequest, parse_chat
from spyglass_bridge.openai.start import CallContext, ChatStart, to_start
from spyglass_bridge.services import CALLER_KEY, OUTCOME, REQUEST_ID, SERVICES

# The server ends a generation at its deadline; the bridge only when the server did not.
_GRACE_S = 0.5
# How long an error event may take to reach a client that reads slowly.
_LAST_WORDS_S = 1.0

_LARGE_BODY_BYTES = 64 << 10

_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

_log = logging.getLogger(__name__)


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answers a conversation."""
    services = request.app[SERVICES]
    config = services.config
    body = await read_json_body(request, config.max_body_bytes)
    context = CallContext(
        request_id=request[REQUEST_ID],
        caller_key=request[CALLER_KEY],
        timeout_s=config.request_timeout_s,
        max_image_bytes=config.max_image_bytes,
    )
    large = len(body) > _LARGE_BODY_BYTES  # reading it would hold up the streams of others
    ask, chat = await asyncio.to_thread(_read, body, context) if large else _read(body, context)
    deadline = asyncio.get_running_loop().time() + config.request_timeout_s + _GRACE_S
    async with services.link.generate(chat.start) as generation:
        try:
            async with asyncio.timeout_at(deadline):
                if not await send_images(generation, chat.images, services.fetcher):
                    _check(await generation.next())
                if not ask.stream:
                    return await _answer_at_once(generation, ask)
        except TimeoutError:
            raise _timed_out() from None
        return await _answer_as_stream(request, generation, ask, deadline)


def _read(body: bytes, context: CallContext) -> tuple[ChatRequest, ChatStart]:
    ask = parse_chat(body)
    return ask, to_start(ask, context)


async def _answer_at_once(generation: LinkedGeneration, ask: ChatRequest) -> web.Response:
    builder = CompletionBuilder(AnswerHead(ask.model), ask.n or 1)
    while True:
        update = await generation.next()
        _check(update)
        builder.add(update.deltas)
        if update.finished is not None:
            return web.Response(
                text=compact_json(builder.build(update.finished.usage)), content_type="application/json"
            )


async def _answer_as_stream(
    request: web.Request, generation: LinkedGeneration, ask: ChatRequest, deadline: float
) -> web.StreamResponse:
    include_usage = ask.stream_options.include_usage if ask.stream_options else None
    encoder = ChunkEncoder(AnswerHead(ask.model), ask.n or 1, UsageForm.of(include_usage))
    response = web.StreamResponse(headers=_SSE_HEADERS)
    try:
        await response.prepare(request)
        async with asyncio.timeout_at(deadline):
            await _write_chunks(response, generation, encoder)
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


async def _write_chunks(response: web.StreamResponse, generation: LinkedGeneration, encoder: ChunkEncoder) -> None:
    """Writes once for each update: what a frame brought leaves together."""
    await response.write(sse.frame(*encoder.begin()))
    while True:
        update = await generation.next()
        chunks = encoder.deltas(update.deltas)
        if update.finished is None:
            if chunks:
                await response.write(sse.frame(*chunks))
            continue
        if update.finished.HasField("error"):
            if chunks:
                await response.write(sse.frame(*chunks))
            raise from_status(update.finished.error)
        await response.write(sse.frame(*chunks, *encoder.end(update.finished.usage)) + sse.DONE)
        return


async def _write_last_words(request: web.Request, response: web.StreamResponse, error: ApiError) -> None:
    """Ends a stream with an error event and without [DONE]; cuts off a client that does not read."""
    request[OUTCOME] = f"200, then {error.http_status}"
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            await response.write(sse.frame(compact_json(error.body)))
            await response.write_eof()
    except (TimeoutError, ConnectionResetError):
        if request.transport is not None:
            request.transport.abort()


def _check(update: Update) -> None:
    """Raises the ApiError of a generation that did not end well."""
    if update.finished is not None and update.finished.HasField("error"):
        raise from_status(update.finished.error)


def _timed_out() -> ApiError:
    return ApiError(504, "The generation took too long.", code="timeout")
