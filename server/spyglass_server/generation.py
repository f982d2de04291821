"""The life of one generation: validate, admit, wait for images, prepare, meter, run, close.

Whatever happens, exactly one Finished is emitted, and an open usage record is closed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_ATTENTION_BYTES, MAX_TOKENS
from spyglass_server.admission import Place
from spyglass_server.auth import ApiKey, find_payer
from spyglass_server.bookkeeping import Bookkeeping
from spyglass_server.choices import Choices
from spyglass_server.codec import events
from spyglass_server.codec.start import Spec, decode_start, request_digest
from spyglass_server.constraints.grammar import constraint_failed
from spyglass_server.engine.messages import EngineRequest, PromptLogprobs, TokenOutput
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine_run import EngineRun, Output
from spyglass_server.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    SpyglassError,
    TooManyRequests,
    Unavailable,
)
from spyglass_server.prompt import Prompt
from spyglass_server.prompt.detokenizer import Detokenizer
from spyglass_server.prompt_echo import PromptEcho
from spyglass_server.replays import Follower
from spyglass_server.resources import Resources
from spyglass_server.upload import Upload

log = logging.getLogger(__name__)


class Generation:
    """One generation. `run` is its whole life, in a task that its owner holds."""

    def __init__(
        self,
        event_id: int,
        start: pb.Start,
        key: ApiKey,
        resources: Resources,
        emit: Callable[[pb.Event], None],
        counts: dict[int, int],
        new_delta: Callable[[int, int], pb.Delta | None] = lambda event_id, index: None,
    ) -> None:
        """`counts` gets the usage record's token count, by its number, with each token.

        `new_delta` makes a delta in the message that will be sent, or returns None if it must be emitted as an event.
        """
        self._id = event_id
        self._start: pb.Start | None = start
        """The request, until it is decoded: it may be large."""
        self._key = key
        self._books = Bookkeeping(start, resources)
        self._resources = resources
        self._emit, self._new_delta = emit, new_delta
        self._counts = counts
        self._upload = Upload()
        self._ending: SpyglassError | None = None
        self._task: asyncio.Task[None] | None = None
        self._may_be_ended = False
        self._follower: Follower | None = None
        """Set if this generation repeats another's answer."""

    def start(self) -> asyncio.Task[None]:
        """Starts `run` as a task."""
        self._task = asyncio.create_task(self.run(), name=f"generation-{self._id}")
        return self._task

    def end(self, error: SpyglassError | None = None) -> None:
        """Ends the generation early with an error, by default a cancellation."""
        if self._follower is not None and isinstance(error, Unavailable):
            self._follower.answer.end(error)
        if self._ending is None:
            self._ending = error or Cancelled("the caller cancelled the generation")
            if self._task is not None and self._may_be_ended:
                self._task.cancel()

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Takes a chunk of an announced image; an invalid one ends the generation."""
        if self._follower is not None:
            self._follower.add_chunk(chunk)
            return
        try:
            self._upload.add(chunk)
        except (InvalidRequest, TooManyRequests) as error:
            self.end(error)

    @property
    def count(self) -> tuple[int, int] | None:
        """The usage record's number and token count while the record is open."""
        return self._books.count if self._may_be_ended else None

    async def run(self) -> None:
        """Runs to the end. Raises only CancelledError, if cancelled other than by `end`."""
        error: BaseException | None = None
        try:
            if self._ending is not None:  # it was ended before it began
                raise self._ending
            self._may_be_ended = True
            await self._run()
        except asyncio.CancelledError as cancelled:
            error = self._ending or cancelled
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as problem:  # also those that are not an Exception, such as a library's panic
            error = problem
            if not isinstance(problem, SpyglassError):
                log.exception("generation %r failed", self._books.request_id[:128])
        self._may_be_ended = False
        self._close(error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _run(self) -> None:
        resources, start = self._resources, self._start
        assert start is not None
        spec = decode_start(start, resources.image_limits)
        self._books.identify(spec)
        self._books.payer = payer = find_payer(resources.keys, self._key, spec.caller_key)
        self._books.model = resources.resolve_model(spec.model, payer)
        limit_s = resources.request_timeout_s
        try:
            async with asyncio.timeout(min(spec.timeout_s or limit_s, limit_s)):
                if spec.idempotency_key is not None:
                    await self._follow(start, payer, spec.idempotency_key)
                    return
                resources.ledger.check()
                with resources.admission.admit(payer.tenant) as place:
                    await self._books.hold()
                    place.hold_bytes(start.ByteSize())
                    del start
                    self._start = None
                    self._books.timeline.admitted_s = time.monotonic()
                    spec, prompt, grammar = await self._prepare(spec, payer, place)
                    await self._answer(spec, prompt, grammar, payer.tenant, place)
        except TimeoutError as error:
            raise DeadlineExceeded("the generation took longer than it was allowed") from error

    async def _follow(self, start: pb.Start, payer: ApiKey, key: str) -> None:
        """Emits the events of the generation with an idempotency key, which is started if there is none."""
        answer, is_new = self._resources.replays.find(payer.tenant, key, request_digest(start))
        self._follower = Follower(answer, self._id, self._emit, self._counts, is_first=is_new)
        if is_new:
            own_start = pb.Start()
            own_start.CopyFrom(start)
            own_start.ClearField("idempotency_key")
            answer.begin(Generation(self._id, own_start, self._key, self._resources, answer.emit, {}))
        sends_images = any(part.image.HasField("announced") for turn in start.chat.messages for part in turn.parts)
        self._start = None
        try:
            await self._follower.run()
        except asyncio.CancelledError:
            # No other caller sends its images, or none waits for it.
            if not answer.has_started and ((is_new and sends_images) or not answer.num_followers):
                answer.end(self._ending or Cancelled("the caller is gone"))
            raise

    async def _prepare(self, spec: Spec, payer: ApiKey, place: Place) -> tuple[Spec, Prompt, str]:
        """Waits for all images; returns the spec without them, the prompt, and the grammar of the answer."""
        self._upload.expect(spec, self._resources.image_limits, place.grow)
        spec = replace(spec, images=())
        self._emit(events.accepted(self._id))
        with place.waiting(self.end):
            images = await self._upload.complete()
        self._books.timeline.received_s = time.monotonic()
        prompt, grammar = await self._resources.prepare(spec, images, payer.tenant)
        place.hold_tokens(len(prompt.tokens))
        place.hold_bytes(sum(image.pixels.nbytes for image in prompt.images))
        self._books.timeline.prepared_s = time.monotonic()
        await self._resources.engine.wait_ready()
        return spec, prompt, grammar

    async def _answer(self, spec: Spec, prompt: Prompt, grammar: str, tenant: str, place: Place) -> None:
        resources = self._resources
        max_tokens = self._fit(spec, prompt)
        self._books.reserve(len(prompt.tokens), max_tokens)
        grids: list[pb.ImageGrid] = []
        attention_tokens = 0
        if spec.attention_layers is not None and prompt.images:
            grids = [events.image_grid(image, resources.engine.info.patches_per_side) for image in prompt.images]
            attention_tokens = MAX_ATTENTION_BYTES // sum(grid.rows * grid.columns for grid in grids)
        tiles = SharedImages()
        try:
            await resources.share(tiles, prompt, tenant)
            prompt = prompt.without_images()  # they are large
            request = EngineRequest(
                id=resources.engine.next_id(),
                tokens=prompt.tokens,
                max_tokens=max_tokens,
                min_tokens=spec.min_tokens,
                stop_token_ids=spec.stop_token_ids
                | (frozenset() if spec.ignore_eos else resources.prompts.stop_token_ids),
                sampling=spec.sampling,
                n=spec.n,
                top_logprobs=spec.top_logprobs,
                grammar=grammar,
                prompt_logprobs=spec.prompt_logprobs,
                images=tiles.inputs,
                image_positions=prompt.image_positions,
                attention_tokens=attention_tokens,
                attention_layers=spec.attention_layers or (),
                prediction=prompt.prediction,
                tenant=tenant,
                priority=spec.priority,
            )

            def on_images_taken() -> None:
                tiles.release()
                place.hold_bytes(0)

            await self._generate(spec, request, on_images_taken, grids)
        finally:
            tiles.release()

    def _fit(self, spec: Spec, prompt: Prompt) -> int:
        """How many tokens a choice may have."""
        info = self._resources.engine.info
        room = info.max_tokens - len(prompt.tokens)
        if room < 1:
            raise ContextTooLong(info.max_tokens, f"{len(prompt.tokens)} tokens", spec.input.field)
        if spec.n > info.max_choices:
            raise InvalidRequest(f"this server gives at most {info.max_choices} choices", field="n")
        if any(layer >= info.num_cross_layers for layer in spec.attention_layers or ()):
            raise InvalidRequest(
                f"the model has {info.num_cross_layers} cross-attention layers", field="output.image_attention.layers"
            )
        biased = [token for token, _ in spec.sampling.logit_bias]
        for field, tokens in (("stopping.token_ids", spec.stop_token_ids), ("sampling.logit_bias", biased)):
            if any(token >= self._resources.prompts.vocab_size for token in tokens):
                raise InvalidRequest("the model has no such token", field=field)
        tiles = sum(len(image.pixels) for image in prompt.images)
        if tiles > info.max_image_tiles:
            raise InvalidImage(f"the images need {tiles} tiles; there is room for {info.max_image_tiles}")
        return min(spec.max_tokens or MAX_TOKENS, room, MAX_TOKENS)

    async def _generate(
        self,
        spec: Spec,
        request: EngineRequest,
        on_images_taken: Callable[[], None],
        image_grids: Sequence[pb.ImageGrid],
    ) -> None:
        """Runs the request in the engine; metering starts with its first step."""
        prompts = self._resources.prompts
        tool_use = spec.tool_use
        choices = Choices(
            [Detokenizer(prompts.tokenizer) for _ in range(spec.n)],
            spec.stop,
            {tool.name for tool in tool_use.tools} if tool_use else (),
            prompts.tool_tag_id,
            calls_are_constrained=tool_use is not None and tool_use.needs_grammar,
        )
        echo = PromptEcho(self._id, request.tokens, prompts.tokenizer, echo=spec.echo, logprobs=spec.prompt_logprobs)

        def on_output(output: Output) -> None:
            match output:
                case TokenOutput():
                    self._on_token(output, spec, choices, run)
                case PromptLogprobs(logprobs=logprobs):
                    self._emit_all(echo.logprobs(logprobs))

        run = EngineRun(
            self._resources.engine,
            request,
            on_output=on_output,
            on_images_taken=on_images_taken,
            grammar_error=constraint_failed(spec.shape.kind.value if spec.shape else "chat.tools"),
        )
        try:
            cached_tokens = await run.wait_scheduled()
            record = self._books.open(run, request, cached_tokens, choices)
            self._emit(events.started(self._id, record, self._books.rate_limits, image_grids))
            self._emit_all(echo.begin())
            await run.stream()
        finally:
            timeline = self._books.timeline
            timeline.scheduled_s, timeline.encoded_s = run.scheduled_s, run.encoded_s
            run.close()

    def _on_token(self, output: TokenOutput, spec: Spec, choices: Choices, run: EngineRun) -> None:
        if (delta := choices.push(output)) is None:
            return
        number, num_tokens = self._books.note_token(delta.finish)
        self._counts[number] = num_tokens
        logprobs = attention = None
        bytes_of = self._resources.prompts.tokenizer.token_bytes
        if output.logprobs is not None:
            logprobs = events.token_logprobs(output.token, output.logprobs, bytes_of)
        if spec.attention_layers is not None:
            attention = events.token_attention(bytes_of(output.token), output.attention or ())
        usage = self._books.usage() if spec.running_usage else None
        parts = (*delta, logprobs, usage, attention)
        if (more := self._new_delta(self._id, output.choice)) is not None:
            events.fill(more, *parts)
        else:
            event = events.new_delta(self._id, output.choice)
            events.fill(event.delta, *parts)
            self._emit(event)
        if choices.is_done:
            run.finish()
        elif output.finish is None and delta.finish is not None:
            run.cancel_choice(output.choice)

    def _close(self, error: BaseException | None) -> None:
        """Closes the record, if there is one, and emits Finished."""
        if self._follower is not None:  # the repeated answer has its own record
            self._emit(self._follower.last_event(error, self._resources.prices))
            return
        if (count := self._books.count) is not None:
            self._counts.pop(count[0], None)
        self._emit(pb.Event(id=self._id, finished=self._books.close(error)))

    def _emit_all(self, made: Iterable[pb.Event]) -> None:
        for event in made:
            self._emit(event)
