"""What those see who watch a server: the pages of its metrics, and what a collector of traces is sent."""

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families


def scrape(address: str | None) -> str:
    """The page of metrics at HOST:PORT."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text: str = page.read().decode()
    return text


def samples(page: str) -> dict[str, float]:
    """The values on a page by name and labels, as they stand there: name{label="x"}."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@dataclass
class Collector:
    """What has been sent to a collector at `endpoint`."""

    endpoint: str
    spans: list[tuple[str, Span]] = field(default_factory=list)
    """Each with the name of the service that made it."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """The latest of each name."""

    def take(self, path: str, body: bytes) -> None:
        if path.endswith("/traces"):
            for source in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = attributes(source.resource)["service.name"]
                self.spans += [(service, span) for scope in source.scope_spans for span in scope.spans]
        else:
            given = ExportMetricsServiceRequest.FromString(body).resource_metrics
            found = [metric for source in given for scope in source.scope_metrics for metric in scope.metrics]
            self.measurements |= {metric.name: metric for metric in found}


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span, or of what made it."""
    return {each.key: _value(each.value) for each in holder.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def run_collector() -> Iterator[Collector]:
    """A collector of OTLP over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
