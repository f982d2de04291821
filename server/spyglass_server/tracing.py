"""OpenTelemetry spans for generations, with their phases as children, and measurements.

Names follow the semantic conventions for generative AI. Spans are made from the timeline when a generation has ended:
there is no work per token.
"""

from typing import TYPE_CHECKING

from spyglass_server.report import Report

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

_PROVIDER = "spyglass"
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


class Tracing:
    """Records spans and measurements of generations; `ended` is an observer."""

    def __init__(self, tracer: "Tracer", meter: "Meter") -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            "s",
            "Time from the request to its end.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            "s",
            "Time from the request to the first token.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            "s",
            "Time for each token after the first.",
            explicit_bucket_boundaries_advisory=_TOKEN_SECONDS,
        )

    def ended(self, report: Report) -> None:
        """Records the end of a generation."""
        common: dict[str, str] = {"gen_ai.operation.name": report.operation, "gen_ai.provider.name": _PROVIDER}
        if report.model:
            common["gen_ai.request.model"] = common["gen_ai.response.model"] = report.model
        if report.error is not None:
            common["error.type"] = report.error.reason
        self._measure(report, common)
        self._trace(report, common)

    def _measure(self, report: Report, common: dict[str, str]) -> None:
        timeline, usage = report.timeline, report.usage
        assert timeline.ended_s is not None
        self._duration.record(timeline.ended_s - timeline.began_s, common)
        if timeline.time_to_first_token_s is not None:
            self._first_token.record(timeline.time_to_first_token_s, common)
        rate = timeline.tokens_per_second(usage.completion_tokens) if usage is not None else None
        if rate:
            self._per_token.record(1 / rate, common)

    def _trace(self, report: Report, common: dict[str, str]) -> None:
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        timeline, usage = report.timeline, report.usage
        assert timeline.ended_s is not None
        span = self._tracer.start_span(
            f"{report.operation} {report.model}".rstrip(),
            TraceContextTextMapPropagator().extract({"traceparent": report.traceparent}),
            SpanKind.SERVER,
            common,
            start_time=_nanoseconds(timeline.unix_s(timeline.began_s)),
        )
        if span.is_recording():
            span.set_attribute("spyglass.request.id", report.request_id)
            span.set_attribute("spyglass.request.images", report.num_images)
            span.set_attribute("gen_ai.request.choice.count", report.num_choices)
            if usage is not None:
                span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
            if report.finish is not None:
                span.set_attribute("gen_ai.response.finish_reasons", [report.finish.value])
            if report.error is not None:
                span.set_status(StatusCode.ERROR, report.error.reason)
            inside = trace.set_span_in_context(span)
            for phase in timeline.phases():
                start, end = (_nanoseconds(timeline.unix_s(moment)) for moment in (phase.start_s, phase.end_s))
                self._tracer.start_span(phase.name, inside, start_time=start).end(end)
        span.end(_nanoseconds(timeline.unix_s(timeline.ended_s)))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
