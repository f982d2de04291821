"""Traces and measurements by OpenTelemetry, sent as OTLP over HTTP. Needs the extra `otel`.

Sampling, headers, process attributes and the rest are set by OpenTelemetry's own OTEL_… variables.
"""

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

_EXPORT_TIMEOUT_S = 5
_LAST_WORDS_S = 0.25
"""How long each of the two may take at the end to flush: shutdown does not wait for a collector that is gone."""
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def check_telemetry() -> None:
    """Raises ValueError if the extra is not installed."""
    try:
        found = all(importlib.util.find_spec(package) for package in _PACKAGES)
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ValueError("--otlp-endpoint needs: pip install 'spyglass[otel]'")


@contextmanager
def open_telemetry(service: str, endpoint: str) -> Iterator[tuple["Tracer", "Meter"]]:
    """Yields a service's tracer and meter, which send to a collector at `endpoint` from separate threads.

    Both flush at the end; a collector that does not answer costs log lines, and the spans.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    base = endpoint.rstrip("/")
    resource = Resource.create({"service.name": service})
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", timeout=_EXPORT_TIMEOUT_S)))
    exporter = OTLPMetricExporter(f"{base}/v1/metrics", timeout=_EXPORT_TIMEOUT_S)
    meters = MeterProvider([PeriodicExportingMetricReader(exporter)], resource=resource, shutdown_on_exit=False)
    try:
        yield tracers.get_tracer("spyglass"), meters.get_meter("spyglass")
    finally:
        last = [threading.Thread(target=provider.shutdown, daemon=True) for provider in (tracers, meters)]
        for thread in last:
            thread.start()
        for thread in last:
            thread.join(_LAST_WORDS_S)
