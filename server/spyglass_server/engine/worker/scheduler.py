"""Decides what each step of the engine computes: continuous batching with chunked prefill.

Plain bookkeeping of waiting and running sequences, without tensors and processes.

A request begins as one sequence. When its prompt is computed and it has n choices, the sequence forks: all forks share
the prompt's pages, and a shared page is copied before it is written. When pages run out, the youngest sequence is
preempted and recomputed later, prompt and answer as one prompt; its next tokens are the same, up to rounding. A new
sequence reuses cached pages of earlier sequences that share its leading tokens and images.
"""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from spyglass_server.engine.messages import (
    Drafted,
    EngineRequest,
    Event,
    ImageKey,
    PromptLogprobs,
    RequestFailed,
    RequestScheduled,
    TokenOutput,
)
from spyglass_server.engine.structured_output import GrammarFailed, Matcher
from spyglass_server.engine.worker.batch import Row, RowOutput
from spyglass_server.engine.worker.budget import Limits, StepBudget
from spyglass_server.engine.worker.fair_queue import FairQueue
from spyglass_server.engine.worker.guesses import StepGuesses
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.kv_cache_manager import KVCacheManager, StepReservations
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step's work: continue encoding one image, copy pages, compute rows. `sequences` are those of `rows`."""

    scheduled: tuple[RequestScheduled, ...]
    encode: ImageKey | None
    encode_into: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]
    sequences: tuple[Sequence, ...]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What has happened since the counts were last taken; fields as in `StepStats`."""

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    image_cache_queries: int = 0
    image_cache_hits: int = 0
    num_preemptions: int = 0


class Scheduler:
    """Continuous batching, fair between tenants, with preemption by recompute."""

    def __init__(self, limits: Limits, pages: PagePool, images: ImageCache) -> None:
        self._limits = limits
        self._cache = KVCacheManager(pages)
        self._images = images
        self._waiting: FairQueue[Sequence] = FairQueue(
            lambda sequence: sequence.tenant, lambda sequence: sequence.request.priority
        )
        self._running: list[Sequence] = []  # oldest first
        self._is_images_turn = False
        self._counts = Counts()

    @property
    def kv_cache_usage(self) -> float:
        """The fraction of the KV cache that running sequences hold."""
        return self._cache.usage

    @property
    def image_cache_usage(self) -> float:
        """The fraction of the image cache that running sequences hold."""
        return self._images.usage

    def take_counts(self) -> Counts:
        """Returns the counts since the last call, and resets them."""
        counts, self._counts = self._counts, Counts()
        return counts

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: EngineRequest, matcher: Matcher | None = None) -> None:
        """Queues a request. It must fit: one of its sequences in all pages, its images in all tiles.

        It does not begin until its matcher is ready.
        """
        assert self._cache.fits(len(request.tokens) + request.max_tokens)
        assert request.n <= self._limits.max_batch
        self._waiting.retain(sequence.tenant for sequence in [*self._running, *self._waiting])
        self._waiting.add(
            Sequence(request=request, choices=tuple(range(request.n)), tokens=list(request.tokens), matcher=matcher)
        )

    def is_alive(self, request_id: int) -> bool:
        """Whether any choice of a request is still waiting or running."""
        return any(s.request.id == request_id for s in [*self._running, *self._waiting])

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """Drops a request, or one of its choices; no effect if it has ended."""
        for sequence in [*self._running, *self._waiting]:
            if sequence.request.id != request_id:
                continue
            sequence.choices = tuple(c for c in sequence.choices if index is not None and c != index)
            if not sequence.choices:
                self._end(sequence)

    def schedule(self) -> Step:
        """Chooses the next step's work: running sequences first, then as many new ones as fit.

        Sequences are updated as if the step were complete, so that, if `can_look_ahead`, the next step can be scheduled
        before this one's outputs are known.
        """
        scheduled = self._start_waiting()
        planned: dict[Sequence, Row] = {}
        reservations = StepReservations(self._cache, self._running, self._preempt)
        self._is_images_turn = not self._is_images_turn and self._next_image() is not None
        budget = StepBudget(self._limits, self._is_images_turn)
        guesses = StepGuesses(self._limits, self._cache, self._running)
        for sequence in self._by_urgency():
            remaining, computed = sequence.remaining, sequence.num_computed
            count = budget.tokens_for(remaining, computed) if sequence.can_be_computed else 0
            if not count or not self._is_seeing(sequence) or not sequence.is_running:  # preempted for an earlier one
                continue
            guess, matchers = guesses.of(sequence)
            if reservations.reserve(sequence, computed + count + len(guess)):
                planned[sequence] = self._row(sequence, count, guess, matchers)
                budget.spend(count + len(guess), remaining, computed)
        kept = {sequence: row for sequence, row in planned.items() if sequence.is_running}
        self._assume(kept)
        image = self._next_image() if budget.has_room_for_image else None
        return Step(
            scheduled=tuple(scheduled),
            encode=image,
            encode_into=self._images.tiles(image) if image else (),
            copies=reservations.copies,
            rows=tuple(kept.values()),
            sequences=tuple(kept),
        )

    @property
    def can_look_ahead(self) -> bool:
        """Whether no sequence needs a token that is not drawn yet."""
        return not any(sequence.needs_last_token for sequence in self._running)

    def commit(self, step: Step, outputs: Seq[RowOutput]) -> list[Event]:
        """Applies a step's outputs; a failed row ends only its own request."""
        events: list[Event] = []
        for sequence, row, output in zip(step.sequences, step.rows, outputs, strict=True):
            if not sequence.is_running:
                continue  # it was cancelled or preempted since, or another choice of its request failed
            if output.error is not None:
                self._cache.evict(sequence)  # its pages may hold the cause
                self.cancel(sequence.request.id)
                events.append(RequestFailed(sequence.request.id, output.error, output.by_grammar))
                continue
            if row.num_drafts:
                events += self._take_guesses(sequence, row, output)
                continue
            self._waiting.charge(sequence.tenant, len(row.tokens))
            self._cache.register(sequence, row.start, row.end)
            if output.prompt_logprobs:
                sequence.num_prompt_logprobs = row.start + row.prompt_logprobs_start + len(output.prompt_logprobs)
                events.append(PromptLogprobs(sequence.request.id, output.prompt_logprobs))
            if row.choices:
                events += self._append(sequence, row, output)
        return events

    def retract(self, step: Step) -> None:
        """Reverts the latest scheduled step, which will not be committed."""
        for sequence, row in zip(step.sequences, step.rows, strict=True):
            if sequence.is_running:
                sequence.num_computed = row.start
                if len(row.choices) == 1:
                    sequence.tokens.pop()

    def known_rows(self, step: Step) -> list[Row | None]:
        """Returns a step's rows with the tokens drawn by now; None for sequences that no longer run.

        The step must be the latest uncommitted one.
        """
        return [
            replace(row, tokens=_known_tokens(sequence, row), pages=tuple(sequence.pages))
            if sequence.is_running
            else None
            for sequence, row in zip(step.sequences, step.rows, strict=True)
        ]

    def _assume(self, planned: Mapping[Sequence, Row]) -> None:
        """Updates sequences as if their rows were computed. Those about to fork must wait for their outputs."""
        draw = 0
        for sequence, row in planned.items():
            sequence.num_computed = row.end
            sequence.num_guessed = row.num_drafts
            if len(row.choices) == 1:
                sequence.tokens.append(-1 - draw)
            draw += len(row.choices) * (1 + row.num_drafts)

    def image_encoded(self, key: ImageKey) -> None:
        self._images.mark_encoded(key)

    def requests_with(self, key: ImageKey) -> set[int]:
        """Returns the ids of running requests that hold an image."""
        return {s.request.id for s in self._running if key in s.image_keys}

    def check(self) -> None:
        """Asserts that all accounts agree; for tests and idle time."""
        self._cache.check(self._running)
        self._images.check(s.image_keys for s in self._running)
        assert all(s.is_running for s in self._running), "the status of a running sequence is another"
        waiting = {SequenceStatus.WAITING, SequenceStatus.PREEMPTED}
        assert all(s.status in waiting for s in self._waiting), "the status of a waiting sequence is another"
        assert all(not s.pages and not s.num_computed for s in self._waiting), "a waiting sequence holds pages"
        assert sum(len(s.choices) for s in self._running) <= self._limits.max_batch, "the batch is too large"

    def _row(self, sequence: Sequence, count: int, guess: tuple[int, ...], matchers: tuple[Matcher, ...]) -> Row:
        start, end = sequence.num_computed, sequence.num_computed + count
        return Row(
            request=sequence.request,
            tokens=(*sequence.tokens[start:end], *guess),
            start=start,
            pages=tuple(sequence.pages),
            choices=sequence.choices if end == len(sequence.tokens) else (),
            image_tiles=tuple(self._images.tiles(key) for key in sequence.image_keys),
            history=(*sequence.tokens[:end], *guess) if sequence.request.sampling.has_penalties else (),
            may_stop=sequence.num_answered >= sequence.request.min_tokens,
            matcher=sequence.matcher,
            prompt_logprobs_start=max(start, sequence.num_prompt_logprobs) - start,
            sequence=sequence.number,
            num_drafts=len(guess),
            draft_matchers=matchers,
        )

    # --- admission and preemption -------------------------------------------------------------

    def _start_waiting(self) -> list[RequestScheduled]:
        """Starts waiting sequences in fair order, while there is room. Returns events for those that first start."""
        scheduled = []
        while (sequence := self._next_to_begin()) is not None:
            self._waiting.remove(sequence)
            self._running.append(sequence)
            if sequence.status is SequenceStatus.WAITING:
                self._count(sequence)
                scheduled.append(RequestScheduled(sequence.request.id, sequence.num_computed))
            sequence.status = SequenceStatus.RUNNING
        return scheduled

    def _next_to_begin(self) -> Sequence | None:
        """Allocates pages and images to the next sequence in order and returns it, or None if there is no room for it.

        A sequence that only lacks image tiles can be overtaken by others that need no new tiles; one whose grammar is
        being compiled can be overtaken by all.
        """
        if not self._waiting:
            return None
        seats = self._limits.max_batch - sum(len(s.choices) for s in self._running)
        pending: Counter[str] = Counter()
        for sequence in self._running:
            pending[sequence.tenant] += sequence.remaining
        images_are_full = False
        for sequence in self._waiting.in_order(pending):
            if sequence.matcher is not None and not sequence.matcher.is_ready:
                continue
            if images_are_full and not all(self._images.is_held(key) for key in sequence.image_keys):
                continue
            prefix = self._cache.cached_prefix(sequence)
            if len(sequence.choices) > seats or not self._cache.has_room(sequence, prefix):
                return None
            if not self._images.hold(sequence.image_sizes):
                images_are_full = True
                continue
            self._cache.begin(sequence, prefix)
            return sequence
        return None

    def _count(self, sequence: Sequence) -> None:
        counts, images = self._counts, set(sequence.image_keys)
        counts.prefix_cache_queries += len(sequence.tokens)
        counts.prefix_cache_hits += sequence.num_computed
        counts.image_cache_queries += len(images)
        counts.image_cache_hits += sum(map(self._images.is_encoded, images))

    def _preempt(self, sequence: Sequence) -> None:
        self._counts.num_preemptions += 1
        self._stop(sequence)
        sequence.forget_undrawn()
        sequence.status = SequenceStatus.PREEMPTED
        sequence.num_computed = 0
        self._waiting.put_back(sequence)

    def _end(self, sequence: Sequence) -> None:
        if sequence.is_running:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status = SequenceStatus.ENDED

    def _stop(self, sequence: Sequence) -> None:
        """Removes a running sequence and frees its pages and images."""
        self._running.remove(sequence)
        self._cache.free(sequence)
        self._images.release(sequence.image_keys)

    def _by_urgency(self) -> list[Sequence]:
        """Returns decoding sequences, then prefills: least-served tenants first, within a tenant the oldest first."""
        prompts = [sequence for sequence in self._running if sequence.remaining > 1]
        answers = [sequence for sequence in self._running if sequence.remaining == 1]
        return answers + sorted(prompts, key=lambda sequence: self._waiting.served(sequence.tenant))

    # --- progress ---------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, row: Row, output: RowOutput) -> list[Event]:
        """Adds one token to each choice; forks if the choices were one sequence until now."""
        alive = [(i, choice) for i, choice in enumerate(row.choices) if choice in sequence.choices]
        if len(row.choices) > 1:
            sequence.tokens.append(-1)
        branches = [sequence] + [self._fork(sequence) for _ in alive[1:]]
        events: list[Event] = []
        for branch, (i, choice) in zip(branches, alive, strict=True):
            branch.choices = (choice,)
            branch.tokens[row.end] = output.tokens[i]
            events.append(taken := self._take_token(branch, row.end + 1, output, i))
            if isinstance(taken, RequestFailed):
                return events
            if taken.finish is not None:
                self._end(branch)
        return events

    def _take_guesses(self, sequence: Sequence, row: Row, output: RowOutput) -> list[Event]:
        """Appends a row's tokens up to the first wrongly guessed one; keys and values beyond it are discarded."""
        guesses = (*row.tokens[-row.num_drafts :], None)
        request = sequence.request
        events: list[Event] = []
        num_right, sequence.num_guessed = 0, 0
        sequence.forget_undrawn()
        for one, guess in zip((output, *output.drafted), guesses, strict=True):
            if one.error is not None:
                self._cache.evict(sequence)
                self.cancel(request.id)
                return [*events, RequestFailed(request.id, one.error, one.by_grammar)]
            sequence.tokens.append(one.tokens[0])
            events.append(taken := self._take_token(sequence, len(sequence.tokens), one, 0))
            if isinstance(taken, RequestFailed):
                return events
            finish = taken.finish
            if finish is not None or taken.token != guess:
                break
            num_right += 1
        sequence.num_computed = row.start + 1 + num_right
        self._cache.register(sequence, row.start, sequence.num_computed)
        self._waiting.charge(sequence.tenant, 1 + num_right)
        if sequence.drafter is not None and not sequence.is_forced:
            sequence.drafter.learn(row.num_drafts, num_right)
        events.insert(0, Drafted(request.id, row.num_drafts, num_right))
        if finish is not None:
            self._end(sequence)
        return events

    def _take_token(
        self, sequence: Sequence, length: int, output: RowOutput, number: int
    ) -> TokenOutput | RequestFailed:
        """Advances the grammar by the last of a sequence's first `length` tokens, the `number`th one of the output.

        If the grammar fails, the request ends.
        """
        [choice] = sequence.choices
        request_id, token = sequence.request.id, sequence.tokens[length - 1]
        finish = sequence.finish_reason(length)
        if sequence.matcher is not None and finish is None:
            try:
                sequence.matcher.advance(token)
            except GrammarFailed as error:
                self.cancel(request_id)
                return RequestFailed(request_id, str(error), by_grammar=True)
        logprobs = output.logprobs[number] if output.logprobs else None
        return TokenOutput(request_id, choice, token, finish=finish, logprobs=logprobs, attention=output.attention)

    def _fork(self, sequence: Sequence) -> Sequence:
        twin = sequence.fork()
        self._cache.share(twin)
        held = self._images.hold(twin.image_sizes)
        assert held, "images that are held can be held once more"
        self._running.insert(self._running.index(sequence) + 1, twin)
        return twin

    # --- images ---------------------------------------------------------------------------------

    def _is_seeing(self, sequence: Sequence) -> bool:
        return all(self._images.is_encoded(key) for key in sequence.image_keys)

    def _next_image(self) -> ImageKey | None:
        keys = (image.key for sequence in self._running for image in sequence.request.images)
        return next((key for key in keys if not self._images.is_encoded(key)), None)


def _known_tokens(sequence: Sequence, row: Row) -> tuple[int, ...]:
    """Returns a row's tokens, with placeholders replaced by the tokens drawn by now."""
    known = sequence.tokens[row.start : row.end - row.num_drafts]
    return (*known, *row.tokens[len(known) :])
