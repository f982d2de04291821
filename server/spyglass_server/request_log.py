"""One log line for each generation, without any content of its request or answer."""

import logging

from spyglass_common.logs import fields
from spyglass_server.report import Report

log = logging.getLogger(__name__)


def log_generation(report: Report) -> None:
    """Logs how a generation ended, what it used and how long its phases took; an observer."""
    if not log.isEnabledFor(logging.INFO):
        return
    usage, timeline = report.usage, report.timeline
    assert timeline.ended_s is not None
    phases = {f"{phase.name}_ms": _ms(phase.duration_s) for phase in timeline.phases()}
    log.info(
        "generation ended",
        extra=fields(
            request_id=report.request_id,
            trace_id=report.traceparent[3:35] or None,
            tenant=report.tenant or None,
            key_id=report.key_id or None,
            model=report.model or None,
            code=report.code,
            reason=report.error.reason if report.error else None,
            finish=report.finish.value if report.finish else None,
            choices=report.num_choices,
            images=report.num_images,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cost=usage.estimated_cost if usage else None,
            first_token_ms=_ms(timeline.time_to_first_token_s),
            total_ms=_ms(timeline.ended_s - timeline.began_s),
            **phases,
        ),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)
