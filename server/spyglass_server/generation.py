"""The life of one generation, from its Start to its one Finished.

Owns the order: validate, admit, wait for images, prepare, meter, run, close. Whatever happens on the
way, exactly one Finished is emitted, and a record that was opened is closed. Knows nothing of streams:
events go to a callback.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from spyglass.v1 import inference_pb2
from spyglass_common.limits import MAX_TOKENS
from spyglass_server.auth import Identity, Scope
from spyglass_server.cancellation import to_the_end
from spyglass_server.codec import events
from spyglass_server.codec.start import Spec, decode_start
from spyglass_server.engine.shared import SharedTiles
from spyglass_server.engine.supervisor import EngineDied
from spyglass_server.engine.types import (
    EngineRequest,
    Event,
    ImagesTaken,
    Logprobs,
    PromptTold,
    RequestBegun,
    RequestFailed,
    TokenOutput,
)
from spyglass_server.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    Forbidden,
    InvalidImage,
    InvalidRequest,
    SpyglassError,
    Unavailable,
    to_status,
)
from spyglass_server.output import Choices
from spyglass_server.prompt import Prompt
from spyglass_server.prompt.detokenizer import Detokenizer
from spyglass_server.prompt.grammar import shape_failed
from spyglass_server.services import Services
from spyglass_server.upload import Upload

log = logging.getLogger(__name__)

_MOST_CHARACTERS = 128 << 10
"""So much of a prompt's text is told in one event."""
_MOST_TOLD = 512
"""So many tokens of a prompt are told of in one event; each takes up to a kilobyte."""


class Generation:
    """One generation. `run` is its whole life, and a task of its owner's."""

    def __init__(
        self,
        event_id: int,
        start: inference_pb2.Start,
        identity: Identity,
        services: Services,
        emit: Callable[[inference_pb2.Event], None],
    ) -> None:
        self._id = event_id
        self._start = start
        self._identity = identity
        self._services = services
        self._emit = emit
        self._upload = Upload()
        self._ending: SpyglassError | None = None
        self._task: asyncio.Task[None] | None = None
        self._may_be_ended = False
        self._record: int | None = None
        self._prompt_tokens = self._cached_tokens = 0
        self._choices: Choices | None = None

    def start(self) -> asyncio.Task[None]:
        """Begins `run` as a task."""
        self._task = asyncio.create_task(self.run(), name=f"generation-{self._id}")
        return self._task

    def end(self, error: SpyglassError | None = None) -> None:
        """Ends the generation early, with an error that says why; a cancel by default."""
        if self._ending is None:
            self._ending = error or Cancelled("the caller cancelled the generation")
            if self._task is not None and self._may_be_ended:
                self._task.cancel()

    def add_chunk(self, chunk: inference_pb2.ImageChunk) -> None:
        """Takes a piece of an announced image; a wrong one ends the generation."""
        try:
            self._upload.add(chunk)
        except InvalidRequest as error:
            self.end(error)

    async def run(self) -> None:
        """Runs to the end. Raises only CancelledError, when it was cancelled by others than `end`."""
        error: BaseException | None = None
        try:
            if self._ending is not None:  # it was ended before it began
                raise self._ending
            self._may_be_ended = True
            await self._run()
        except asyncio.CancelledError as cancelled:
            error = self._ending or cancelled
        except Exception as problem:
            error = problem
            if not isinstance(problem, SpyglassError):
                log.exception("generation %r failed", self._start.request_id[:128])
        self._may_be_ended = False
        await to_the_end(self._close(error))
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _run(self) -> None:
        spec = decode_start(self._start, self._services.image_limits)
        payer = self._payer(spec)
        model = self._services.resolve_model(spec.model)
        limit_s = self._services.request_timeout_s
        try:
            async with asyncio.timeout(min(spec.timeout_s or limit_s, limit_s)):
                with self._services.admission.admit():
                    await self._run_admitted(spec, payer, model)
        except TimeoutError as error:
            raise DeadlineExceeded("the generation took longer than it was allowed") from error

    async def _run_admitted(self, spec: Spec, payer: Identity, model: str) -> None:
        services = self._services
        self._upload.expect(spec, services.image_limits)
        self._emit(events.accepted(self._id))
        images = await self._upload.complete()
        prompt, grammar = await services.prepare(spec, images)
        await services.engine.wait_ready()
        max_tokens = self._fit(spec, prompt)
        tiles = SharedTiles()
        try:
            await services.share(tiles, prompt, payer.key_id)
            prompt = prompt.without_images()  # they are large
            request = EngineRequest(
                id=services.engine.next_id(),
                tokens=prompt.tokens,
                max_tokens=max_tokens,
                min_tokens=spec.min_tokens,
                stop_token_ids=spec.stop_token_ids
                | (frozenset() if spec.ignore_eos else services.prompts.stop_token_ids),
                sampling=spec.sampling,
                n=spec.n,
                top_logprobs=spec.top_logprobs,
                grammar=grammar,
                tells_prompt=spec.tells_prompt,
                images=tiles.inputs,
                image_positions=prompt.image_positions,
                tenant=payer.key_id,
                priority=spec.priority,
            )
            await self._generate(spec, request, tiles, model)
        finally:
            tiles.release()

    async def _begin(self, spec: Spec, request: EngineRequest, cached_tokens: int, model: str) -> None:
        """From here on the generation is metered."""
        self._prompt_tokens, self._cached_tokens = len(request.tokens), cached_tokens
        self._record = await self._services.ledger.open(
            request.tenant, self._start.request_id, model, self._prompt_tokens, cached_tokens
        )
        self._emit(events.started(self._id, self._prompt_tokens, cached_tokens))
        if spec.echo or spec.tells_prompt:
            self._echo(spec, request.tokens)

    def _echo(self, spec: Spec, tokens: Sequence[int]) -> None:
        """Tells the prompt, and of its first token that nothing comes before it."""
        tokenizer = self._services.prompts.tokenizer
        text = tokenizer.written_text(tokens) if spec.echo else ""
        told = []
        if spec.tells_prompt:
            told.append(events.token_logprobs(tokens[0], Logprobs(0.0, (), ()), tokenizer.written))
        self._emit(events.prompt_echo(self._id, tokens, text[:_MOST_CHARACTERS], told))
        for begin in range(_MOST_CHARACTERS, len(text), _MOST_CHARACTERS):
            self._emit(events.prompt_echo(self._id, text=text[begin : begin + _MOST_CHARACTERS]))

    def _tell(self, tokens: Sequence[int], found: Sequence[Logprobs]) -> None:
        """Tells probabilities of more of the prompt's tokens."""
        written = self._services.prompts.tokenizer.written
        for begin in range(0, len(found), _MOST_TOLD):
            pairs = zip(tokens, found[begin : begin + _MOST_TOLD], strict=False)
            self._emit(events.prompt_echo(self._id, logprobs=[events.token_logprobs(*pair, written) for pair in pairs]))
            tokens = tokens[_MOST_TOLD:]

    def _payer(self, spec: Spec) -> Identity:
        """Whose key is billed: the caller's, or on a gateway's stream that of the end user."""
        if self._identity.scope is not Scope.ACT_FOR_OTHERS:
            if spec.caller_key is not None:
                raise Forbidden("this key may not act for others", field="caller")
            return self._identity
        if spec.caller_key is None:
            raise InvalidRequest("a gateway names the caller of each generation", field="caller")
        return self._services.keys.check_caller(spec.caller_key)

    def _fit(self, spec: Spec, prompt: Prompt) -> int:
        """How many tokens a choice may have."""
        info = self._services.engine.info
        room = info.max_tokens - len(prompt.tokens)
        if room < 1:
            raise ContextTooLong(info.max_tokens, f"{len(prompt.tokens)} tokens", spec.input.field)
        if spec.n > info.max_choices:
            raise InvalidRequest(f"this server gives at most {info.max_choices} choices", field="n")
        biased = [token for token, _ in spec.sampling.logit_bias]
        for field, tokens in (("stopping.token_ids", spec.stop_token_ids), ("sampling.logit_bias", biased)):
            if any(token >= self._services.prompts.vocab_size for token in tokens):
                raise InvalidRequest("the model has no such token", field=field)
        tiles = sum(len(image.pixels) for image in prompt.images)
        if tiles > info.max_image_tiles:
            raise InvalidImage(f"the images need {tiles} tiles; there is room for {info.max_image_tiles}")
        return min(spec.max_tokens or MAX_TOKENS, room, MAX_TOKENS)

    async def _generate(self, spec: Spec, request: EngineRequest, tiles: SharedTiles, model: str) -> None:
        """Runs the engine's part. Its events come to `on_event`, on the event loop."""
        engine = self._services.engine
        prompts = self._services.prompts
        detokenizers = [Detokenizer(prompts.tokenizer) for _ in range(spec.n)]
        tool_use = spec.tool_use
        tool_names = {tool.name for tool in tool_use.tools} if tool_use else ()
        self._choices = choices = Choices(
            detokenizers,
            spec.stop,
            tool_names,
            prompts.tool_tag_id,
            calls_are_constrained=tool_use is not None and tool_use.needs_grammar,
        )
        bytes_of = prompts.tokenizer.token_bytes
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[int] = loop.create_future()
        done: asyncio.Future[None] = loop.create_future()
        early: list[TokenOutput | PromptTold] = []  # what comes before the record is open
        is_open = False
        num_told = 1

        def settle(error: SpyglassError | None) -> None:
            if done.done():
                return  # the task has been cancelled and is about to let go
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def on_token(event: TokenOutput) -> None:
            if (delta := choices.push(event)) is None:
                return
            logprobs = event.logprobs and events.token_logprobs(event.token, event.logprobs, bytes_of)
            usage = self._usage() if spec.tells_usage else None
            self._emit(events.delta(self._id, event.choice, *delta, logprobs=logprobs, usage=usage))
            if choices.is_done:
                settle(None)  # and the engine is told to stop, whatever it still computes
            elif event.finish is None and delta.finish is not None:
                engine.cancel_choice(request.id, event.choice)

        def on_told(event: PromptTold) -> None:
            nonlocal num_told
            self._tell(request.tokens[num_told:], event.logprobs)
            num_told += len(event.logprobs)

        def on_event(event: Event | EngineDied) -> None:
            match event:
                case TokenOutput() | PromptTold() if not is_open:
                    early.append(event)
                case TokenOutput():
                    on_token(event)
                case PromptTold():
                    on_told(event)
                case ImagesTaken():
                    tiles.release()
                case RequestBegun(cached_tokens=cached_tokens):
                    begun.set_result(cached_tokens)
                case RequestFailed(detail=detail, by_grammar=True):
                    log.warning("the grammar of request %s failed: %s", spec.request_id, detail)
                    settle(shape_failed(spec.shape.kind.value if spec.shape else "chat.tools"))
                case RequestFailed(detail=detail):
                    log.error("request %s failed in the engine: %s", spec.request_id, detail)
                    settle(SpyglassError("internal error"))
                case EngineDied():
                    settle(Unavailable("the engine was restarted", reason="engine_restarted", retry_after_s=1.0))

        try:
            engine.submit(request, on_event)
            await asyncio.wait((begun, done), return_when=asyncio.FIRST_COMPLETED)
            if begun.done():
                await to_the_end(self._begin(spec, request, begun.result(), model))
                is_open = True
                for event in early:
                    on_event(event)
            await done
        finally:
            engine.cancel(request.id)

    async def _close(self, error: BaseException | None) -> None:
        """Closes the record, if there is one, and emits Finished."""
        usage = None
        if self._record is not None:
            usage = self._usage()
            outcome = error.code.name if isinstance(error, SpyglassError) else "OK" if error is None else "CANCELLED"
            try:
                await self._services.ledger.close(self._record, usage.completion_tokens, usage.estimated_cost, outcome)
            except Exception:  # the caller has the answer and must learn that it is whole
                log.exception("the usage of %r could not be written: %r", self._start.request_id, usage)
        self._emit(events.finished(self._id, usage, to_status(error) if error is not None else None))

    def _usage(self) -> inference_pb2.Usage:
        completion_tokens = self._choices.num_tokens if self._choices else 0
        return inference_pb2.Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=self._cached_tokens,
            estimated_cost=self._services.prices.cost(self._prompt_tokens, self._cached_tokens, completion_tokens),
        )
