"""A bridge's Prometheus metrics. Labels are bounded: a route's pattern and a status code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLoad:
    """A snapshot of a bridge's load."""

    running: int = 0
    held_bytes: int = 0
    is_ready: bool = False


class BridgeMetrics:
    """The metrics of one bridge, in their own registry."""

    def __init__(self, load: Callable[[], BridgeLoad]) -> None:
        """`load` is called from other threads."""
        self.registry = CollectorRegistry()
        self.registry.register(_Live(load))
        self._requests = Counter(
            "spyglass_bridge_requests",
            "HTTP requests that have ended; code is left where the client went away first.",
            ("route", "code"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "spyglass_bridge_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            registry=self.registry,
            buckets=_SECONDS,
        )

    def ended(self, route: str, code: str, took_s: float) -> None:
        """Records a request that has ended."""
        self._requests.labels(route, code).inc()
        self._duration.labels(route).observe(took_s)


class _Live(Collector):
    """Gauges that are computed whenever the metrics are read."""

    def __init__(self, load: Callable[[], BridgeLoad]) -> None:
        self._load = load

    def describe(self) -> list[Metric]:
        return list(_families(BridgeLoad()))

    def collect(self) -> Iterator[Metric]:
        return _families(self._load())


def _families(load: BridgeLoad) -> Iterator[Metric]:
    yield GaugeMetricFamily("spyglass_bridge_requests_running", "Requests with a key that are answered.", load.running)
    yield GaugeMetricFamily("spyglass_bridge_held_bytes", "Memory that bodies and pictures take.", load.held_bytes)
    yield GaugeMetricFamily(
        "spyglass_bridge_server_ready", "Whether the model server can serve generations: 1 or 0.", int(load.is_ready)
    )
