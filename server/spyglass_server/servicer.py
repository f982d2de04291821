"""The RPCs of InferenceService.

`Generation` implements the life of a generation, `Session` the rules of a Generate stream, and `boundary` handles keys
and errors.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from grpc import aio

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc
from spyglass_common.limits import MAX_TOKENS
from spyglass_server.auth import ApiKey, find_caller, find_payer
from spyglass_server.boundary import caller
from spyglass_server.codec import events
from spyglass_server.codec.start import decode_start
from spyglass_server.codec.usage import decode_filter, decode_groups, decode_max_records, encode_record, encode_sum
from spyglass_server.errors import InvalidRequest, going_down
from spyglass_server.resources import Resources
from spyglass_server.session import Session

log = logging.getLogger(__name__)

_MAX_TEXT_BYTES = 3 << 20
_STALLED_S = 60.0
"""How long a client may read nothing before its stream is dropped."""

if TYPE_CHECKING:  # generic only in the stubs
    Context = aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Answers calls. Stateless except for open streams."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._sessions: set[Session] = set()
        self._is_draining = False
        self._no_sessions = asyncio.Event()
        self._no_sessions.set()
        self._started_s = time.time()

    async def Generate(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: "Context"
    ) -> None:
        session = Session(caller(), self._resources)
        self._sessions.add(session)
        self._no_sessions.clear()
        if self._is_draining:
            session.drain()
        reader = asyncio.create_task(session.read(request_iterator), name="stream-reader")
        try:
            async for frame in session.frames():
                try:
                    async with asyncio.timeout(_STALLED_S):
                        await context.write(frame)
                except TimeoutError:
                    log.warning("a client has read nothing for %.0f s; its stream is dropped", _STALLED_S)
                    raise asyncio.CancelledError from None  # no status can be sent while a message waits
            if reader.done():
                reader.result()  # raises the stream's error
        finally:
            await asyncio.shield(asyncio.create_task(self._close(session, reader), name="stream-close"))

    async def _close(self, session: Session, reader: asyncio.Task[None]) -> None:
        """Ends a stream. Runs as a separate task, since the call may be cancelled again meanwhile.

        That happens if the client leaves while the server shuts down.
        """
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await session.aclose()
        self._sessions.discard(session)
        if not self._sessions:
            self._no_sessions.set()

    async def ListModels(self, request: pb.ListModelsRequest, context: "Context") -> pb.ListModelsResponse:
        key = self._caller(request)
        return pb.ListModelsResponse(models=[self._model(name) for name in self._resources.models_of(key)])

    async def GetModel(self, request: pb.GetModelRequest, context: "Context") -> pb.GetModelResponse:
        return pb.GetModelResponse(
            model=self._model(self._resources.resolve_model(request.model, self._caller(request)))
        )

    async def CountTokens(self, request: pb.CountTokensRequest, context: "Context") -> pb.CountTokensResponse:
        resources = self._resources
        spec = decode_start(request.start, resources.image_limits)
        payer = find_payer(resources.keys, caller(), spec.caller_key)
        resources.resolve_model(spec.model, payer)
        if None in spec.images:
            raise InvalidRequest("images must be inline to be counted, or say their sizes", field="start.chat")
        with resources.admission.admit(payer.tenant) as place:
            hold = await resources.quotas.hold(payer)
            try:
                place.hold_bytes(request.ByteSize())
                prompt, _ = await resources.prepare(spec, [], payer.tenant)
                layouts = await resources.lay_out(spec, payer.tenant)
            finally:
                hold.end(0, 0.0)
        token_ids = prompt.tokens if request.with_tokens else ()
        return pb.CountTokensResponse(
            prompt_tokens=len(prompt.tokens),
            token_ids=token_ids,
            images=layouts,
            estimated_cost=resources.prices.cost(len(prompt.tokens), 0, 0),
        )

    async def Detokenize(self, request: pb.DetokenizeRequest, context: "Context") -> pb.DetokenizeResponse:
        resources = self._resources
        resources.resolve_model(request.model, caller())
        ids = request.token_ids
        if len(ids) > resources.engine.info.max_tokens:
            raise InvalidRequest(f"the context is {resources.engine.info.max_tokens} tokens", field="token_ids")
        if any(token > resources.prompts.largest_token_id for token in ids):
            raise InvalidRequest("the model has no such token", field="token_ids")
        text = resources.prompts.tokenizer.written_text(ids)
        if len(text.encode()) > _MAX_TEXT_BYTES:
            raise InvalidRequest(f"the text has more than {_MAX_TEXT_BYTES} bytes", field="token_ids")
        return pb.DetokenizeResponse(text=text)

    async def CheckAccess(self, request: pb.CheckAccessRequest, context: "Context") -> pb.CheckAccessResponse:
        key = self._caller(request)
        return pb.CheckAccessResponse(key_id=key.id, tenant=key.tenant)

    async def GetUsage(self, request: pb.GetUsageRequest, context: "Context") -> pb.GetUsageResponse:
        key, ledger = self._caller(request), self._resources.ledger
        chosen = replace(decode_filter(request.filter), key_id=key.id)
        groups = decode_groups(request.group_by)
        limit = decode_max_records(request.max_records)
        [total] = await ledger.sums(chosen)
        return pb.GetUsageResponse(
            key_id=key.id,
            tenant=key.tenant,
            generations=total.generations,
            prompt_tokens=total.prompt_tokens,
            cached_tokens=total.cached_tokens,
            completion_tokens=total.completion_tokens,
            images=total.images,
            estimated_cost=total.cost_usd,
            sums=[encode_sum(each) for each in await ledger.sums(chosen, groups)] if groups else (),
            records=[encode_record(record) for record in await ledger.latest(chosen, limit)],
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: "Context") -> pb.GetStatusResponse:
        resources, engine = self._resources, self._resources.engine
        load, activity = resources.metrics.load(), engine.activity
        return pb.GetStatusResponse(
            state=self._state(),
            running=load.running,
            waiting=load.waiting,
            max_pending=resources.admission.num_places,
            last_step_age=events.duration(load.last_step_age_s),
            last_token_age=events.duration(activity.last_token_age_s),
            output_tokens_per_second=activity.tokens_per_second,
            started=events.timestamp(self._started_s),
            models=resources.served_names if engine.has_info else (),
            device=load.labels.get("device", ""),
            dtype=load.labels.get("dtype", ""),
            quantization=load.labels.get("quantization", ""),
            cache=events.cache_status(resources.metrics.totals),
            engine_restarts=load.num_restarts,
            latest_failures=map(events.failure, resources.metrics.latest_failures),
        )

    def drain(self) -> None:
        """Asks the clients of all streams to go away; running generations may finish."""
        self._is_draining = True
        for session in self._sessions:
            session.drain()

    async def wait_idle(self) -> None:
        """Waits, after `drain`, until all streams and generations have ended."""
        await self._no_sessions.wait()
        await self._resources.admission.wait_idle()  # answers that belong to no stream

    def abandon(self) -> None:
        """Ends all generations that are still running."""
        for session in self._sessions:
            session.abandon()
        self._resources.replays.abandon(going_down())

    def _caller(
        self, request: pb.ListModelsRequest | pb.GetModelRequest | pb.CheckAccessRequest | pb.GetUsageRequest
    ) -> ApiKey:
        """Returns the key on whose behalf a short call is made: its own, if it names no caller."""
        keys = self._resources.keys
        if not request.HasField("caller"):
            return keys.current(caller())
        return find_caller(keys, caller(), request.caller.bearer_key)

    def _state(self) -> "pb.ServerState.ValueType":
        engine = self._resources.engine
        if self._is_draining:
            return pb.SERVER_STATE_DRAINING
        if not engine.is_loaded:
            return pb.SERVER_STATE_LOADING
        if not engine.is_ready:
            return pb.SERVER_STATE_STALLED
        return pb.SERVER_STATE_BUSY if self._resources.admission.is_full else pb.SERVER_STATE_READY

    def _model(self, name: str) -> pb.Model:
        resources, info = self._resources, self._resources.engine.info
        quantization = [] if info.quantization == "none" else [info.quantization]
        return pb.Model(
            id=name,
            description="A model of the Llama 3.2 Vision architecture: text and images in, text out.",
            created=events.timestamp(self._started_s),
            context_length=info.max_tokens,
            max_tokens=min(info.max_tokens, MAX_TOKENS),
            pricing=pb.Pricing(
                input_tokens=resources.prices.input,
                output_tokens=resources.prices.output,
                cached_input_tokens=resources.prices.cached_input,
            ),
            dtype=info.dtype,
            max_images=resources.image_limits.max_images,
            max_image_bytes=resources.image_limits.max_bytes,
            tags=["text-generation", "multimodal", "vision", info.dtype, *quantization],
            quantization="".join(quantization),
            memory=pb.ModelMemory(**asdict(info.memory)),
            ranks=[pb.ModelMemory(**asdict(rank)) for rank in info.ranks] if len(info.ranks) > 1 else (),
        )
