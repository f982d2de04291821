"""A server's metrics, for Prometheus.

Labels are bounded: a served model's name, a finish reason, a canonical status code. Never a key, an id or text.
"""

import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from spyglass_server.engine.messages import FinishReason, StepStats
from spyglass_server.report import Report

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_ENCODE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STEP_TOKENS = tuple(float(1 << power) for power in range(14))
_MAX_FAILURES = 10
_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""Status codes of failures that concern the operator; the others are caused by callers."""


@dataclass(slots=True, kw_only=True)
class EngineTotals:
    """Totals of the engine's steps since the server's start, and current cache usage; as in `StepStats`."""

    kv_cache_usage: float = 0.0
    image_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    image_cache_queries: int = 0
    image_cache_hits: int = 0
    num_preemptions: int = 0

    def add(self, stats: StepStats) -> None:
        """Adds a step."""
        self.kv_cache_usage, self.image_cache_usage = stats.kv_cache_usage, stats.image_cache_usage
        self.prefix_cache_queries += stats.prefix_cache_queries
        self.prefix_cache_hits += stats.prefix_cache_hits
        self.image_cache_queries += stats.image_cache_queries
        self.image_cache_hits += stats.image_cache_hits
        self.num_preemptions += stats.num_preemptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A snapshot of a server's load."""

    running: int = 0
    waiting: int = 0
    last_step_age_s: float | None = None
    num_restarts: int = 0
    labels: Mapping[str, str]
    """More about the model."""


class Failure(NamedTuple):
    """A generation that the server could not serve, without any request content."""

    unix_s: float
    code: str
    reason: str


class AnswerTotals:
    """The tokens of a model's answers, and the times between pieces of one answer.

    Plain numbers: each of the library's counters takes a lock, which per token would cost more than everything else.
    """

    __slots__ = ("num_between", "num_tokens", "sum_between_s")

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_between = [0] * (len(_TOKEN_SECONDS) + 1)
        """Number of these times per bucket: at most its bound in `_TOKEN_SECONDS`, and longer than the one before."""
        self.sum_between_s = 0.0


class AnswerMetrics:
    """Counts the tokens of one answer as they arrive."""

    __slots__ = ("_last_s", "_totals")

    def __init__(self, totals: AnswerTotals) -> None:
        self._totals, self._last_s = totals, 0.0

    def token(self, now_s: float) -> None:
        """Counts a token. Tokens that arrive at the same time are one piece."""
        totals = self._totals
        totals.num_tokens += 1
        if now_s != self._last_s:
            if self._last_s:
                totals.num_between[bisect_left(_TOKEN_SECONDS, now_s - self._last_s)] += 1
                totals.sum_between_s += now_s - self._last_s
            self._last_s = now_s


class Metrics:
    """The metrics of one server, in their own registry. Apart from the prefix, names match other servers'."""

    def __init__(self, model: str, load: Callable[[], Load]) -> None:
        """`model` labels metrics of the engine rather than of a generation. Other threads call `load`."""
        self.load, self.totals = load, EngineTotals()
        self.latest_failures: deque[Failure] = deque(maxlen=_MAX_FAILURES)
        self.registry = registry = CollectorRegistry()
        self._answers = {model: AnswerTotals()}
        registry.register(_Live(model, load, self.totals, self._answers))

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"spyglass_{name}", text, ("model", *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"spyglass_{name}", text, ("model",), registry=registry, buckets=buckets)

        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts, as they are billed.")
        self._success = counter("request_success", "Generations that ended well.", "finished_reason")
        self._failures = counter("request_failures", "Generations that started and did not end well.", "code")
        self._rejections = counter("admission_rejections", "Generations that ended before they started.", "code")
        self._first_token = histogram("time_to_first_token_seconds", "From the request to the first token.")
        self._duration = histogram("e2e_request_latency_seconds", "From the request to the end of its answer.")
        self._phases = {
            "queue": histogram("request_queue_time_seconds", "The wait for the engine."),
            "prefill": histogram("request_prefill_time_seconds", "From the engine's start to the first token."),
            "decode": histogram("request_decode_time_seconds", "From the first token to the end of the answer."),
        }
        encode = histogram("image_encode_time_seconds", "The vision encoder's work on one image.", _ENCODE_SECONDS)
        step_tokens = histogram("iteration_tokens", "Tokens that one step of the engine computed.", _STEP_TOKENS)
        self._encode, self._step_tokens = encode.labels(model), step_tokens.labels(model)
        self._prompt_tokens.labels(model)
        for reason in FinishReason:
            self._success.labels(model, reason.value)  # present from the start, so that rates include the first one

    def step(self, stats: StepStats) -> None:
        """Records a step of the engine."""
        self.totals.add(stats)
        self._step_tokens.observe(stats.num_tokens)
        for seconds in stats.encode_s:
            self._encode.observe(seconds)

    def started(self, model: str, prompt_tokens: int) -> "AnswerMetrics":
        """Records the start of a generation; returns the counter of its tokens."""
        self._prompt_tokens.labels(model).inc(prompt_tokens)
        return AnswerMetrics(self._answers.setdefault(model, AnswerTotals()))

    def ended(self, report: Report) -> None:
        """Records the end of a generation; an observer."""
        code, timeline = report.code, report.timeline
        if code in _FAULTS and report.error is not None:
            assert timeline.ended_s is not None
            self.latest_failures.append(Failure(timeline.unix_s(timeline.ended_s), code, report.error.reason))
        if report.usage is None:
            self._rejections.labels(report.model, code).inc()
            return
        if report.finish is not None and report.error is None:
            self._success.labels(report.model, report.finish.value).inc()
        else:
            self._failures.labels(report.model, code).inc()
        for phase in timeline.phases():
            if histogram := self._phases.get(phase.name):
                histogram.labels(report.model).observe(phase.duration_s)
        if (first_s := timeline.time_to_first_token_s) is not None:
            self._first_token.labels(report.model).observe(first_s)
        if report.error is None and timeline.ended_s is not None:
            self._duration.labels(report.model).observe(timeline.ended_s - timeline.began_s)


class _Live(Collector):
    """Metrics that are computed at each scrape."""

    def __init__(
        self, model: str, load: Callable[[], Load], totals: EngineTotals, answers: Mapping[str, AnswerTotals]
    ) -> None:
        self._model, self._load, self._totals, self._answers = model, load, totals, answers

    def describe(self) -> list[Metric]:
        return list(self._families(Load(labels={})))

    def collect(self) -> Iterator[Metric]:
        return self._families(self._load())

    def _families(self, load: Load) -> Iterator[Metric]:
        totals = self._totals
        yield InfoMetricFamily("spyglass_model", "What is served.", {"model": self._model, **load.labels})
        for name, text, value in (
            ("num_requests_running", "Generations that the engine computes.", load.running),
            ("num_requests_waiting", "Generations that wait: for images, their prompt or the engine.", load.waiting),
            ("kv_cache_usage_perc", "Part of the KV cache that running generations hold.", totals.kv_cache_usage),
            ("image_cache_usage_perc", "Part of the image cache that they hold.", totals.image_cache_usage),
            (
                "last_step_age_seconds",
                "Age of the engine's last step; 0 while it has nothing to do.",
                load.last_step_age_s or 0.0,
            ),
        ):
            gauge = GaugeMetricFamily(f"spyglass_{name}", text, labels=("model",))
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, text, value in (
            ("prefix_cache_queries", "Prompt tokens looked for in the KV cache.", totals.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the KV cache.", totals.prefix_cache_hits),
            ("image_cache_queries", "Images looked for in the image cache.", totals.image_cache_queries),
            ("image_cache_hits", "Images found in the image cache.", totals.image_cache_hits),
            ("num_preemptions", "Sequences that gave back their pages, to be computed again.", totals.num_preemptions),
            ("engine_restarts", "How often the engine process was started again.", load.num_restarts),
        ):
            counter = CounterMetricFamily(f"spyglass_{name}", text, labels=("model",))
            counter.add_metric((self._model,), value)
            yield counter
        yield from self._of_answers()

    def _of_answers(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "spyglass_generation_tokens", "Tokens of answers, as they are billed.", labels=("model",)
        )
        between = HistogramMetricFamily(
            "spyglass_inter_token_latency_seconds", "Between pieces of one answer.", labels=("model",)
        )
        for model, totals in list(self._answers.items()):
            tokens.add_metric((model,), totals.num_tokens)
            bounds = (*map(floatToGoString, _TOKEN_SECONDS), "+Inf")
            buckets = list(zip(bounds, itertools.accumulate(totals.num_between), strict=True))
            between.add_metric((model,), buckets, totals.sum_between_s)
        yield tokens
        yield between
