"""GET /health and /ready: for load balancers and supervisors, without a key."""

from aiohttp import web

from spyglass_bridge.services import SERVICES


async def health(request: web.Request) -> web.Response:
    """The bridge is alive."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Generations can be served: 200 or 503."""
    services = request.app[SERVICES]
    if services.drain.is_draining:
        return web.json_response({"status": "draining"}, status=503)
    if not services.backend.is_ready:
        return web.json_response({"status": "waiting for the model server"}, status=503)
    return web.json_response({"status": "ready"})
