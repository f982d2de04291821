"""The metrics under vLLM's names as well, for routers and autoscalers that look for those."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_VLLM_NAMES = {
    f"spyglass_{name}": f"vllm:{name}"
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "num_preemptions",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    )
} | {"spyglass_iteration_tokens": "vllm:iteration_tokens_total"}


def with_vllm_names(registry: CollectorRegistry) -> CollectorRegistry:
    """Returns a registry with all metrics of another; those that vLLM also has appear under its names too."""
    both = CollectorRegistry()
    both.register(_Both(registry))
    return both


class _Both(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            if (name := _VLLM_NAMES.get(metric.name)) is None:
                continue
            alias = Metric(name, metric.documentation, metric.type)
            for sample in metric.samples:
                labels = dict(sample.labels)
                labels["model_name"] = labels.pop("model")
                alias.add_sample(sample.name.replace(metric.name, name, 1), labels, sample.value)
            yield alias
