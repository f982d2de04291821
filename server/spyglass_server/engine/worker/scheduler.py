"""Decides what each step of the engine computes.

Owns the sequences, waiting and running, their pages and their claims on image states. Plain
bookkeeping: knows neither tensors nor the process around it.

A request begins as one sequence. When its prompt is computed and it has n choices, the sequence
forks: all share the prompt's pages, and a shared page is copied before it is written. When pages
run out, the youngest sequence loses its own and is computed again later, prompt and answer as one
prompt; its next tokens are the same, up to rounding. A sequence that begins takes over the pages of
those before it that began with the same tokens and images.
"""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from spyglass_server.engine.messages import (
    EngineRequest,
    Event,
    FinishReason,
    ImageKey,
    PromptLogprobs,
    RequestFailed,
    RequestScheduled,
    TokenOutput,
)
from spyglass_server.engine.structured_output import GrammarFailed, Matcher
from spyglass_server.engine.worker.batch import Row, RowOutput
from spyglass_server.engine.worker.block_hashes import block_hashes
from spyglass_server.engine.worker.budget import Limits, StepBudget
from spyglass_server.engine.worker.fair_queue import FairQueue
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import OutOfPages, PagePool


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One choice of a request on its way; before the fork, all of its choices."""

    request: EngineRequest
    choices: tuple[int, ...]
    tokens: list[int]
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Of its full pages, as far as they were needed so far."""
    num_computed: int = 0
    was_scheduled: bool = False
    is_running: bool = False
    matcher: Matcher | None = None
    num_prompt_logprobs: int = 0
    """Prompt positions whose logprob of the next token has been returned."""

    @property
    def remaining(self) -> int:
        """Tokens that are known but not computed; 1 while it decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def image_keys(self) -> tuple[ImageKey, ...]:
        return tuple(image.key for image in self.request.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do now: go on encoding one image, copy pages, compute rows. `sequences` belong to `rows`."""

    scheduled: tuple[RequestScheduled, ...]
    encode: ImageKey | None
    encode_into: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]
    sequences: tuple[Sequence, ...]


class Scheduler:
    """Continuous batching, fair between tenants, with preemption by recompute."""

    def __init__(self, limits: Limits, pages: PagePool, images: ImageCache) -> None:
        self._limits = limits
        self._pages = pages
        self._images = images
        self._waiting: FairQueue[Sequence] = FairQueue(_tenant, lambda sequence: sequence.request.priority)
        self._running: list[Sequence] = []  # oldest first
        self._is_images_turn = False

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: EngineRequest, matcher: Matcher | None = None) -> None:
        """Queues a request. It must fit: one sequence of it in all pages, its images in all room.

        It does not begin before its matcher is ready.
        """
        assert self._pages.num_needed(len(request.tokens) + request.max_tokens) <= self._pages.num_pages
        assert request.n <= self._limits.max_batch
        self._waiting.retain(map(_tenant, [*self._running, *self._waiting]))
        self._waiting.add(
            Sequence(request=request, choices=tuple(range(request.n)), tokens=list(request.tokens), matcher=matcher)
        )

    def is_alive(self, request_id: int) -> bool:
        """Whether any choice of a request still waits or runs."""
        return any(s.request.id == request_id for s in [*self._running, *self._waiting])

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """Drops a request, or one choice of it; without effect when it has ended."""
        for sequence in [*self._running, *self._waiting]:
            if sequence.request.id != request_id:
                continue
            sequence.choices = tuple(c for c in sequence.choices if index is not None and c != index)
            if not sequence.choices:
                self._remove(sequence)

    def schedule(self) -> Step:
        """Chooses the next step's work: running sequences first, then as many new ones as fit."""
        scheduled = self._start_waiting()
        planned: dict[Sequence, Row] = {}
        copies: dict[int, int] = {}  # target page: source page
        self._is_images_turn = not self._is_images_turn and self._next_image() is not None
        budget = StepBudget(self._limits, self._is_images_turn)
        for sequence in self._by_urgency():
            remaining, computed = sequence.remaining, sequence.num_computed
            count = budget.tokens_for(remaining, computed)
            if not count or not self._is_seeing(sequence) or not sequence.is_running:
                continue
            if self._reserve(sequence, computed + count, planned, copies):
                planned[sequence] = self._row(sequence, count)
                budget.spend(count, remaining, computed)
        image = self._next_image() if budget.has_room_for_image else None
        return Step(
            scheduled=tuple(scheduled),
            encode=image,
            encode_into=self._images.tiles(image) if image else (),
            copies=tuple((source, target) for target, source in copies.items()),
            rows=tuple(planned.values()),
            sequences=tuple(planned),
        )

    def commit(self, step: Step, outputs: Seq[RowOutput]) -> list[Event]:
        """Takes in what a step computed; a failed row ends its request, and only that."""
        events: list[Event] = []
        for sequence, row, output in zip(step.sequences, step.rows, outputs, strict=True):
            if not sequence.is_running:
                continue  # another choice of its request failed in this step
            if output.error is not None:
                self._pages.forget(sequence.pages)  # what made it fail may stand in them
                self.cancel(sequence.request.id)
                events.append(RequestFailed(sequence.request.id, output.error, output.by_grammar))
                continue
            sequence.num_computed = row.end
            self._waiting.charge(_tenant(sequence), len(row.tokens))
            self._label_pages(sequence, row.start)
            if output.prompt_logprobs:
                sequence.num_prompt_logprobs = row.start + row.prompt_logprobs_start + len(output.prompt_logprobs)
                events.append(PromptLogprobs(sequence.request.id, output.prompt_logprobs))
            if row.choices:
                events += self._append(sequence, row.choices, output)
        return events

    def image_encoded(self, key: ImageKey) -> None:
        self._images.mark_encoded(key)

    def requests_with(self, key: ImageKey) -> set[int]:
        """The ids of running requests that hold an image."""
        return {s.request.id for s in self._running if key in s.image_keys}

    def check(self) -> None:
        """Asserts that all accounts agree; for tests and idle time."""
        self._pages.check(s.pages for s in self._running)
        self._images.check(s.image_keys for s in self._running)
        assert all(s.is_running for s in self._running), "a running sequence does not know it"
        assert not any(s.is_running for s in self._waiting), "a waiting sequence runs"
        assert all(not s.pages and not s.num_computed for s in self._waiting), "a waiting sequence holds pages"
        assert sum(len(s.choices) for s in self._running) <= self._limits.max_batch, "the batch is too large"

    def _row(self, sequence: Sequence, count: int) -> Row:
        start, end = sequence.num_computed, sequence.num_computed + count
        request = sequence.request
        prompt_logprobs_start = max(start, sequence.num_prompt_logprobs)
        may_stop = len(sequence.tokens) - len(request.tokens) >= request.min_tokens
        return Row(
            tokens=sequence.tokens[start:end],
            start=start,
            pages=sequence.pages,
            sampling=request.sampling,
            choices=sequence.choices if end == len(sequence.tokens) else (),
            image_tiles=tuple(self._images.tiles(key) for key in sequence.image_keys),
            image_positions=request.image_positions,
            history=sequence.tokens,
            num_prompt=len(request.tokens),
            banned_token_ids=() if may_stop else request.stop_token_ids,
            matcher=sequence.matcher,
            top_logprobs=request.top_logprobs,
            prompt_logprobs_start=prompt_logprobs_start - start,
            prompt_targets=request.tokens[prompt_logprobs_start + 1 : end + 1] if request.prompt_logprobs else (),
        )

    # --- admission and preemption -------------------------------------------------------------

    def _start_waiting(self) -> list[RequestScheduled]:
        """Lets those run for whom there is room, by turns. Returns those that run for the first time."""
        scheduled = []
        while (sequence := self._next_to_begin()) is not None:
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.is_running = True
            if not sequence.was_scheduled:
                sequence.was_scheduled = True
                scheduled.append(RequestScheduled(sequence.request.id, sequence.num_computed))
        return scheduled

    def _next_to_begin(self) -> Sequence | None:
        """The one whose turn it is, with its pages and images, or None when there is no room for it.

        Who waits for room for images alone lets others pass that need no such room; who waits for its grammar, all.
        """
        if not self._waiting:
            return None
        seats = self._limits.max_batch - sum(len(s.choices) for s in self._running)
        pending: Counter[str] = Counter()
        for sequence in self._running:
            pending[_tenant(sequence)] += sequence.remaining
        images_are_full = False
        for sequence in self._waiting.in_order(pending):
            if sequence.matcher is not None and not sequence.matcher.is_ready:
                continue
            if images_are_full and not all(self._images.is_held(key) for key in sequence.image_keys):
                continue
            known = self._find_pages(sequence)
            missing = self._pages.num_needed(len(sequence.tokens)) - len(known)
            if len(sequence.choices) > seats or missing > self._pages.num_free - self._pages.num_idle(known):
                return None
            if not self._images.hold([(image.key, image.num_tiles) for image in sequence.request.images]):
                images_are_full = True
                continue
            self._pages.share(known)
            sequence.pages = known + self._pages.take(missing)
            sequence.num_computed = len(known) * self._pages.page_size
            return sequence
        return None

    def _find_pages(self, sequence: Sequence) -> list[int]:
        """Pages with the sequence's beginning. Its last token is always computed: the next one comes from it."""
        if sequence.request.prompt_logprobs:
            return []  # pages hold no probabilities
        keys = self._keys(sequence)
        return self._pages.find(keys[: (len(sequence.tokens) - 1) // self._pages.page_size])

    def _label_pages(self, sequence: Sequence, start: int) -> None:
        """Lets others find the pages that have become full since position `start`."""
        size = self._pages.page_size
        if full := range(start // size, sequence.num_computed // size):
            keys = self._keys(sequence)
            for i in full:
                self._pages.label(sequence.pages[i], keys[i])

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """What stands in the sequence's full pages, or will when they are computed."""
        sequence.keys = block_hashes(sequence.request, sequence.tokens, self._pages.page_size, sequence.keys)
        return sequence.keys

    def _reserve(self, sequence: Sequence, end: int, planned: dict[Sequence, Row], copies: dict[int, int]) -> bool:
        """Gives the sequence its own pages for positions num_computed … end - 1.

        Takes them from the youngest sequences when none are free. Returns False when the sequence
        itself had to go.
        """
        while True:
            try:
                self._own_pages(sequence, end, copies)
                return True
            except OutOfPages:
                victim = self._running[-1]
                planned.pop(victim, None)
                for page in victim.pages:
                    copies.pop(page, None)
                self._preempt(victim)
                if victim is sequence:
                    return False

    def _own_pages(self, sequence: Sequence, end: int, copies: dict[int, int]) -> None:
        size = self._pages.page_size
        shared = [
            i
            for i in range(sequence.num_computed // size, len(sequence.pages))
            if self._pages.is_shared(sequence.pages[i])
        ]
        missing = self._pages.num_needed(end) - len(sequence.pages)
        fresh = self._pages.take(max(missing, 0) + len(shared))
        for i in shared:
            source, sequence.pages[i] = sequence.pages[i], fresh.pop()
            copies[sequence.pages[i]] = source
            self._pages.give_back([source])
        sequence.pages += fresh

    def _preempt(self, sequence: Sequence) -> None:
        self._remove(sequence)
        sequence.num_computed = 0
        self._waiting.put_back(sequence)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.is_running:
            self._running.remove(sequence)
            sequence.is_running = False
            self._pages.give_back(sequence.pages)
            self._images.release(sequence.image_keys)
            sequence.pages = []
        else:
            self._waiting.remove(sequence)

    def _by_urgency(self) -> list[Sequence]:
        """Answers never wait; prompts of the tenant who was served least go first, among his own the oldest."""
        prompts = [sequence for sequence in self._running if sequence.remaining > 1]
        answers = [sequence for sequence in self._running if sequence.remaining == 1]
        return answers + sorted(prompts, key=lambda sequence: self._waiting.served(_tenant(sequence)))

    # --- progress ---------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, choices: Seq[int], output: RowOutput) -> list[Event]:
        """Adds one token to each choice; forks when the choices have been one sequence until now."""
        logprobs = output.logprobs or [None] * len(choices)
        chosen = zip(choices, output.tokens, logprobs, strict=True)
        alive = [one for one in chosen if one[0] in sequence.choices]
        branches = [sequence] + [self._fork(sequence) for _ in alive[1:]]
        events: list[Event] = []
        for branch, (choice, token, its_logprobs) in zip(branches, alive, strict=True):
            branch.choices = (choice,)
            branch.tokens.append(token)
            finish = _finish_reason(branch)
            if branch.matcher is not None and finish is None:
                try:
                    branch.matcher.advance(token)
                except GrammarFailed as error:
                    self.cancel(branch.request.id)
                    return [*events, RequestFailed(branch.request.id, str(error), by_grammar=True)]
            events.append(TokenOutput(branch.request.id, choice, token, finish=finish, logprobs=its_logprobs))
            if finish is not None:
                self._remove(branch)
        return events

    def _fork(self, sequence: Sequence) -> Sequence:
        twin = Sequence(
            request=sequence.request,
            choices=(),
            tokens=list(sequence.tokens),
            pages=list(sequence.pages),
            keys=list(sequence.keys),
            num_computed=sequence.num_computed,
            was_scheduled=True,
            is_running=True,
            matcher=sequence.matcher and sequence.matcher.fork(),
            num_prompt_logprobs=sequence.num_prompt_logprobs,
        )
        self._pages.share(twin.pages)
        held = self._images.hold([(image.key, image.num_tiles) for image in twin.request.images])
        assert held, "images that are held can be held once more"
        self._running.insert(self._running.index(sequence) + 1, twin)
        return twin

    # --- images ---------------------------------------------------------------------------------

    def _is_seeing(self, sequence: Sequence) -> bool:
        return all(self._images.is_encoded(key) for key in sequence.image_keys)

    def _next_image(self) -> ImageKey | None:
        keys = (image.key for sequence in self._running for image in sequence.request.images)
        return next((key for key in keys if not self._images.is_encoded(key)), None)


def _tenant(sequence: Sequence) -> str:
    return sequence.request.tenant


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    if sequence.tokens[-1] in sequence.request.stop_token_ids:
        return FinishReason.STOP
    if len(sequence.tokens) - len(sequence.request.tokens) >= sequence.request.max_tokens:
        return FinishReason.LENGTH
    return None
