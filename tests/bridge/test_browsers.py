"""What browsers are told: CORS, and headers that keep answers from being misused."""

from pathlib import Path

import aiohttp
import pytest
from google.rpc import code_pb2

from bridge_setup import CHAT, BridgeUnderTest, ask, config_for, run_bridge_under_test
from certificates import make_pair, needs_openssl
from fake_service import USER_KEY, FakeService, Reply
from raw_http import connect
from spyglass_bridge.config import Certificate
from spyglass_bridge.server import run_bridge
from spyglass_common.rate_limits import RateLimit, RateLimits
from spyglass_common.status import make_status

OURS = "https://app.example.com"
FOREIGN = (
    "https://evil.example",
    "http://app.example.com",
    "https://app.example.com:444",
    "null",
    OURS + ".evil.io",
    "",
)
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


def cors_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.lower().startswith("access-control-")}


async def every_kind(bridge: BridgeUnderTest, **headers: str) -> list[aiohttp.ClientResponse]:
    """An answer, a stream, errors with and without a key, a page, and what is open."""
    found = []
    for method, path, body, key in (
        ("POST", CHAT, ask(), USER_KEY),
        ("POST", CHAT, ask(stream=True), USER_KEY),
        ("POST", CHAT, ask(n=99), USER_KEY),
        ("POST", CHAT, ask(), "wrong"),
        ("GET", "/v1/models", None, USER_KEY),
        ("GET", "/v1/none", None, USER_KEY),
        ("DELETE", CHAT, None, USER_KEY),
        ("GET", "/", None, ""),
        ("GET", "/page/main.js", None, ""),
        ("GET", "/docs", None, ""),
        ("GET", "/health", None, ""),
        ("GET", "/openapi.json", None, ""),
    ):
        sent = {"Authorization": f"Bearer {key}", **headers}
        async with bridge.http.request(method, path, json=body, headers=sent) as response:
            await response.read()
            found.append(response)
    assert {response.status for response in found} >= {200, 400, 401, 404, 405}
    return found


@pytest.mark.parametrize("allowed", [{OURS}, {OURS, "http://localhost:3000"}])
async def test_an_allowed_origins_page_may_read_all_answers(server: FakeService, allowed: set[str]) -> None:
    async with run_bridge_under_test(server, cors_origins=frozenset(allowed)) as bridge:
        for response in await every_kind(bridge, Origin=OURS):
            assert response.headers["Access-Control-Allow-Origin"] == OURS, response
            assert "Origin" in response.headers["Vary"].split(", ")
            exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)
            assert "Access-Control-Allow-Credentials" not in response.headers
        for origin in FOREIGN:
            for response in await every_kind(bridge, Origin=origin):
                assert not cors_headers(response), origin
                assert "Origin" in response.headers["Vary"].split(", ")  # a cache must not mix them up


async def test_all_rate_limit_headers_can_be_read(server: FakeService) -> None:
    limit = RateLimit(limit=5, remaining=0, reset_s=1.0)
    limits = RateLimits(requests=limit, tokens=limit)
    refusal = make_status(code_pb2.RESOURCE_EXHAUSTED, "slower", "rate_limit", retry_after_s=1, rate_limits=limits)
    server.script = Reply(refusal=refusal)
    async with (
        run_bridge_under_test(server, cors_origins=frozenset({"*"})) as bridge,
        bridge.http.post(CHAT, json=ask(), headers={"Origin": OURS}) as response,
    ):
        assert response.status == 429
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        sent = {name.lower() for name in response.headers if name.lower().startswith("x-ratelimit-")}
        assert len(sent) == 6
        assert {"retry-after", "x-request-id", *sent} <= set(exposed)


async def test_a_preflight_is_answered_without_a_key(server: FakeService) -> None:
    async with run_bridge_under_test(server, cors_origins=frozenset({OURS})) as bridge:
        async with aiohttp.ClientSession(bridge.url) as stranger:
            for path in (CHAT, "/v1/models", "/v1/inference/a/b"):
                async with stranger.options(path, headers={"Origin": OURS, **PREFLIGHT}) as response:
                    assert response.status == 204
                    assert response.headers["Access-Control-Allow-Origin"] == OURS
                    assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
                    assert response.headers["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
                    assert int(response.headers["Access-Control-Max-Age"]) > 0
                    assert response.headers["Vary"] == "Origin"
            for headers in ({"Origin": OURS}, PREFLIGHT, *({"Origin": origin, **PREFLIGHT} for origin in FOREIGN)):
                async with stranger.options(CHAT, headers=headers) as response:
                    assert response.status == 401
                    assert "Access-Control-Allow-Methods" not in response.headers
            strange = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x" * 3000}
            async with stranger.options(CHAT, headers={"Origin": OURS, **strange}) as response:
                assert response.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type"
        assert not server.access_checks


async def test_all_origins_may_be_allowed(server: FakeService) -> None:
    async with run_bridge_under_test(server, cors_origins=frozenset({"*"})) as bridge:
        for response in await every_kind(bridge, Origin="https://anybody.example"):
            assert response.headers["Access-Control-Allow-Origin"] == "*"
        for origin in ("null", "https://anybody.example"):
            async with bridge.http.options(CHAT, headers={"Origin": origin, **PREFLIGHT}) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_nobody_is_allowed_by_default(bridge: BridgeUnderTest) -> None:
    for response in await every_kind(bridge, Origin=OURS):
        assert not cors_headers(response)
        assert "Origin" not in response.headers.get("Vary", "")
    async with bridge.http.options(CHAT, headers={"Origin": OURS, **PREFLIGHT}) as response:
        assert response.status == 405
        assert not cors_headers(response)
    async with bridge.http.options(CHAT, headers={"Origin": OURS, "Authorization": "", **PREFLIGHT}) as response:
        assert response.status == 401
        assert not cors_headers(response)


async def test_every_answer_has_security_headers(bridge: BridgeUnderTest) -> None:
    for response in await every_kind(bridge):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        policy = response.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
        is_page = response.url.path in ("/", "/docs") or response.url.path.startswith("/page/")
        assert response.headers["Cache-Control"] == ("no-cache" if is_page else "no-store")
        assert "Strict-Transport-Security" not in response.headers
    async with connect(bridge.port) as raw:
        await raw.send(b"nonsense\r\n\r\n")
        head = await raw.head()
        assert " 400 " in head
        assert "X-Content-Type-Options: nosniff" in head


@needs_openssl
async def test_browsers_are_told_to_stay_with_tls_where_there_is_tls(server: FakeService, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "pair")
    config = config_for(server.target, https=Certificate(pair.cert, pair.key))
    async with run_bridge(config) as running, aiohttp.ClientSession(running.address) as http:
        for path in ("/", "/docs", "/health", "/v1/models"):
            async with http.get(path, ssl=False) as response:
                assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
