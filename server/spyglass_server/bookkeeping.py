"""The bookkeeping of one generation: its payer, its usage record and its timeline."""

import time
from dataclasses import dataclass, replace

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.rate_limits import RateLimits
from spyglass_server.auth import ApiKey
from spyglass_server.choices import Choices
from spyglass_server.codec import events
from spyglass_server.codec.start import Spec
from spyglass_server.engine.messages import EngineRequest, FinishReason
from spyglass_server.engine_run import EngineRun
from spyglass_server.errors import SpyglassError, as_known, to_status
from spyglass_server.ledger import Record
from spyglass_server.metrics import AnswerMetrics
from spyglass_server.quotas import Hold
from spyglass_server.report import Report
from spyglass_server.resources import Resources
from spyglass_server.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metered:
    """A usage record, and the parts of the generation that it accounts for."""

    record: Record
    choices: Choices
    run: EngineRun
    metrics: AnswerMetrics


class Bookkeeping:
    """Accounts for a generation from its Start to its end: `identify`, `hold`, `reserve`, `open`, `close`."""

    def __init__(self, start: pb.Start, resources: Resources) -> None:
        self._resources = resources
        self._operation = "chat" if start.WhichOneof("input") == "chat" else "text_completion"
        self.request_id = start.request_id
        self.timeline = Timeline()
        self._spec: Spec | None = None
        self.payer: ApiKey | None = None
        self.model = ""
        """The served name that the generation is billed under."""
        self._hold: Hold | None = None
        self._metered: _Metered | None = None
        self._finish: FinishReason | None = None

    def identify(self, spec: Spec) -> None:
        """Notes the decoded request, without its images."""
        self.request_id, self._spec = spec.request_id, replace(spec, images=())

    async def hold(self) -> None:
        """Takes the generation's share of the payer's limits.

        Raises:
            RateLimited, BudgetSpent: a limit is reached.
        """
        assert self.payer is not None
        self._hold = await self._resources.quotas.hold(self.payer)

    def reserve(self, prompt_tokens: int, max_tokens: int) -> None:
        """Reserves what a generation of these sizes may use; raises as `hold` does."""
        assert self._hold is not None
        assert self._spec is not None
        n = self._spec.n
        self._hold.reserve(
            prompt_tokens=prompt_tokens,
            stated_tokens=None if self._spec.max_tokens is None else max_tokens,
            n=n,
            most_usd=self._resources.prices.most(prompt_tokens, n * max_tokens),
        )

    def open(self, run: EngineRun, request: EngineRequest, cached_tokens: int, choices: Choices) -> Record:
        """Opens the usage record; no part of an answer is sent before that."""
        payer, prices = self.payer, self._resources.prices
        assert payer is not None
        record = self._resources.ledger.open(
            Record(
                request_id=self.request_id,
                tenant=payer.tenant,
                key_id=payer.id,
                model=self.model,
                queued_s=self.timeline.began_unix_s,
                started_s=time.time(),
                prompt_tokens=len(request.tokens),
                cached_tokens=cached_tokens,
                num_images=len(request.images),
                price_input=prices.input,
                price_output=prices.output,
                price_cached_input=prices.cached_input,
            )
        )
        metrics = self._resources.metrics.started(self.model, len(request.tokens))
        self._metered = _Metered(record=record, choices=choices, run=run, metrics=metrics)
        return record

    @property
    def rate_limits(self) -> RateLimits | None:
        """What is left of the payer's limits; None without limits."""
        return self._hold.rate_limits if self._hold else None

    def note_token(self, finish: FinishReason | None) -> tuple[int, int]:
        """Notes a token, and the end of its choice if `finish` is set. Returns the record's number and token count."""
        metered, timeline = self._metered, self.timeline
        assert metered is not None
        now_s = metered.run.heard_s
        if timeline.first_token_s is None:
            timeline.first_token_s = now_s
        timeline.last_token_s = now_s
        metered.metrics.token(now_s)
        if finish is not None and self._finish is not FinishReason.LENGTH:
            self._finish = finish
        return metered.record.number, metered.choices.num_tokens

    @property
    def count(self) -> tuple[int, int] | None:
        """The usage record's number and token count; None before there is a record."""
        return None if self._metered is None else (self._metered.record.number, self._metered.choices.num_tokens)

    def usage(self) -> pb.Usage | None:
        """Usage so far; None before there is a record."""
        if self._metered is None:
            return None
        record, run = self._metered.record, self._metered.run
        completion_tokens = self._metered.choices.num_tokens
        return pb.Usage(
            prompt_tokens=record.prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=record.cached_tokens,
            estimated_cost=self._resources.prices.cost(record.prompt_tokens, record.cached_tokens, completion_tokens),
            accepted_prediction_tokens=run.num_right,
            rejected_prediction_tokens=run.num_guessed - run.num_right,
        )

    def close(self, problem: BaseException | None) -> pb.Finished:
        """Closes the record, settles the limits and notifies the observers. Returns the caller's last message."""
        error = None if problem is None else as_known(problem)
        usage, timeline = self.usage(), self.timeline
        timeline.ended_s = time.monotonic()
        if self._metered is not None and usage is not None:
            first_s = timeline.first_token_s
            self._resources.ledger.close(
                self._metered.record.number,
                usage.completion_tokens,
                error.code.name if error is not None else "OK",
                None if first_s is None else timeline.unix_s(first_s),
            )
        if self._hold is not None:
            tokens = usage.prompt_tokens + usage.completion_tokens if usage is not None else 0
            self._hold.end(tokens, usage.estimated_cost if usage is not None else 0.0)
        self._resources.observe(self._report(error, usage))
        timings = None
        if self._spec is not None and self._spec.timings:
            timings = events.timings(timeline, usage.completion_tokens if usage else 0)
        return pb.Finished(usage=usage, error=to_status(error) if error is not None else None, timings=timings)

    def _report(self, error: SpyglassError | None, usage: pb.Usage | None) -> Report:
        spec, payer = self._spec, self.payer
        return Report(
            request_id=self.request_id,
            operation=self._operation,
            model=self.model,
            key_id=payer.id if payer else "",
            tenant=payer.tenant if payer else "",
            traceparent=spec.traceparent if spec else "",
            timeline=self.timeline,
            usage=usage,
            finish=self._finish,
            error=error,
            num_images=spec.num_images if spec else 0,
            num_choices=spec.n if spec else 1,
        )
