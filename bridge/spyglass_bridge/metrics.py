"""What a bridge counts and measures, for Prometheus. Labels are bounded: the pattern of a route, and a status code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLoad:
    """How a bridge is at the moment of a question."""

    running: int = 0
    held_bytes: int = 0
    is_ready: bool = False


class BridgeMetrics:
    """The metrics of one bridge, in a registry of their own."""

    def __init__(self, load: Callable[[], BridgeLoad]) -> None:
        """Other threads call `load`."""
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
        """A request has ended."""
        self._requests.labels(route, code).inc()
        self._duration.labels(route).observe(took_s)


class _Live(Collector):
    """What is looked up whenever somebody reads the metrics."""

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
