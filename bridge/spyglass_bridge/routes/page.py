"""GET / and /page/…: the model page, its files, and the facts it may have before a user enters a key."""

from importlib.metadata import version

from aiohttp import ETag, hdrs, web

from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.serialization import model_object
from spyglass_bridge.page_files import INDEX, REFERENCE_FILES, PageFile, page_files
from spyglass_bridge.services import SERVICES, Services

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
STRICT_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Browsers load nothing from elsewhere, run no scripts but ours, and revalidate a file at each use."""


async def get_page(request: web.Request) -> web.Response:
    """Returns the page itself."""
    return _answer(request, page_files()[INDEX])


async def get_file(request: web.Request) -> web.Response:
    """Returns one of the page's files; without a page, only those of the reference."""
    name = request.match_info["file"]
    file = page_files().get(name)
    if file is None or (request.app[SERVICES].config.page == "off" and name not in REFERENCE_FILES):
        raise ApiError(404, "There is no such file.", code="not_found")
    return _answer(request, file)


async def get_about(request: web.Request) -> web.Response:
    """Returns whose page this is. Describes the model only if the page is public."""
    services = request.app[SERVICES]
    about = {
        "name": "Spyglass",
        "version": version("spyglass"),
        "public": services.config.page == "public",
        "model": await _public_model(services),
        "grpc_port": _grpc_port(services.config),
        "grpc_tls": services.config.grpc_tls is not None,
        "built_with_llama": services.config.built_with_llama,
    }
    return web.json_response(about, headers=STRICT_HEADERS)


async def _public_model(services: Services) -> dict[str, object] | None:
    """Returns the first model for a public page; None for other pages or while the server cannot say."""
    if services.config.page != "public":
        return None
    model = await services.backend.get_public_model()
    return None if model is None else model_object(model)


def _grpc_port(config: BridgeConfig) -> int | None:
    """Returns the server's gRPC port; None if it has none."""
    port = config.grpc_target.rpartition(":")[2]
    return int(port) if port.isdecimal() and not config.grpc_target.startswith("unix:") else None


def _answer(request: web.Request, file: PageFile) -> web.Response:
    headers = {**STRICT_HEADERS, hdrs.ETAG: f'"{file.etag}"', hdrs.VARY: hdrs.ACCEPT_ENCODING}
    known = request.if_none_match or ()
    if any(tag == ETag("*") or tag.value == file.etag for tag in known):
        return web.Response(status=304, headers=headers)
    body = file.body
    if file.packed is not None and _takes_gzip(request):
        body = file.packed
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    charset = None if file.content_type == "image/png" else "utf-8"
    return web.Response(body=body, headers=headers, content_type=file.content_type, charset=charset)


def _takes_gzip(request: web.Request) -> bool:
    for coding in request.headers.get(hdrs.ACCEPT_ENCODING, "").split(","):
        name, _, quality = coding.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
