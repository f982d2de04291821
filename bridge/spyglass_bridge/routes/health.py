"""GET /health and /ready, for load balancers and supervisors, without a key. GET /v1/status, with the load."""

import asyncio

from aiohttp import web
from google.rpc import code_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import server_unavailable
from spyglass_bridge.services import SERVICES, Services

_HEALTH_WAIT_S = 0.5
"""How long /health waits for the server's status: liveness probes are impatient."""
_STATES = {
    pb.SERVER_STATE_LOADING: "loading",
    pb.SERVER_STATE_STALLED: "stalled",
    pb.SERVER_STATE_DRAINING: "draining",
}
_NO_ANSWER = "waiting for the model server"


async def health(request: web.Request) -> web.Response:
    """Reports that the bridge is alive, and the server's state."""
    asking = asyncio.ensure_future(_report(request.app[SERVICES]))
    done, _ = await asyncio.wait([asking], timeout=_HEALTH_WAIT_S)
    asking.cancel()
    report = asking.result() if done else {"status": _NO_ANSWER}
    return web.json_response({"status": "ok", "server": report})


async def ready(request: web.Request) -> web.Response:
    """Reports whether generations can be served: 200 or 503."""
    report = await _report(request.app[SERVICES])
    return web.json_response(report, status=200 if report["status"] in ("ready", "busy") else 503)


async def status(request: web.Request) -> web.Response:
    """Reports the server's state and load."""
    services = request.app[SERVICES]
    found = await services.backend.get_status()
    if found is None:
        raise server_unavailable()
    cache = found.cache
    load = {
        "object": "status",
        "running": found.running,
        "waiting": found.waiting,
        "max_pending": found.max_pending,
        "output_tokens_per_second": round(found.output_tokens_per_second, 2),
        "started": found.started.seconds,
        "models": list(found.models),
        "device": found.device,
        "dtype": found.dtype,
        "quantization": found.quantization,
        "cache": {
            "kv_cache_usage": round(cache.kv_cache_usage, 4),
            "image_cache_usage": round(cache.image_cache_usage, 4),
            "prefix_hit_rate": _rate(cache.prefix_hits, cache.prefix_queries),
            "image_hit_rate": _rate(cache.image_hits, cache.image_queries),
            "preemptions": cache.preemptions,
        },
        "engine_restarts": found.engine_restarts,
        "latest_failures": [
            {"time": failure.time.seconds, "code": code_pb2.Code.Name(failure.code), "reason": failure.reason}
            for failure in found.latest_failures
        ],
    }
    return web.json_response(load | await _report(services))


def _rate(hits: int, queries: int) -> float | None:
    return round(hits / queries, 4) if queries else None


async def _report(services: Services) -> dict[str, object]:
    """Returns the server's state and, while it has work, how long ago it made progress."""
    status = await services.backend.get_status()
    if services.drain.is_draining:
        state = "draining"
    elif status is None:
        state = _NO_ANSWER
    elif not services.backend.is_ready:
        state = _STATES.get(status.state, _NO_ANSWER)
    else:
        state = "busy" if status.state == pb.SERVER_STATE_BUSY else "ready"
    report: dict[str, object] = {"status": state}
    if status is not None and status.HasField("last_step_age"):
        report["last_step_age_s"] = round(status.last_step_age.ToNanoseconds() / 1e9, 3)
    if status is not None and status.HasField("last_token_age"):
        report["last_token_age_s"] = round(status.last_token_age.ToNanoseconds() / 1e9, 3)
    return report
