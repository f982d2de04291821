"""How the bridge serves the page: its files, headers, what is told without a key, and that it can be turned off."""

import gzip
import re
from pathlib import Path

import aiohttp
import pytest

from bridge_setup import MODEL, BridgeUnderTest, run_bridge_under_test
from fake_service import FakeService

FOLDER = Path(__file__).parents[2] / "bridge" / "spyglass_bridge" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def stranger(bridge: BridgeUnderTest) -> aiohttp.ClientSession:
    """A session without a key."""
    return aiohttp.ClientSession(bridge.url, auto_decompress=False)


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/about.json", "/docs"])
async def test_the_page_needs_no_key_and_has_strict_headers(bridge: BridgeUnderTest, path: str) -> None:
    async with stranger(bridge) as http, http.get(path) as response:
        assert response.status == 200
        assert response.headers["Content-Security-Policy"] == POLICY
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/vendor/marked.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/cover.svg", "image/svg+xml; charset=utf-8"),
        ("/page/example.png", "image/png"),
    ],
)
async def test_files_have_their_types(bridge: BridgeUnderTest, path: str, content_type: str) -> None:
    async with stranger(bridge) as http, http.get(path) as response:
        assert response.headers["Content-Type"] == content_type


async def test_a_file_is_sent_packed_where_that_is_taken(bridge: BridgeUnderTest) -> None:
    whole = (FOLDER / "main.js").read_bytes()
    async with stranger(bridge) as http:
        async with http.get("/page/main.js", headers={"Accept-Encoding": "br, gzip;q=0.5"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.headers["Vary"] == "Accept-Encoding"
            assert gzip.decompress(await response.read()) == whole
        for refusal in ("identity", "gzip;q=0, br"):
            async with http.get("/page/main.js", headers={"Accept-Encoding": refusal}) as response:
                assert "Content-Encoding" not in response.headers
                assert await response.read() == whole


async def test_a_file_that_is_known_is_not_sent_again(bridge: BridgeUnderTest) -> None:
    async with stranger(bridge) as http:
        async with http.get("/page/main.js") as response:
            etag = response.headers["ETag"]
        for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
            async with http.get("/page/main.js", headers={"If-None-Match": known}) as response:
                assert (response.status, await response.read()) == (304, b"")
                assert response.headers["ETag"] == etag
        async with http.get("/page/main.js", headers={"If-None-Match": '"other"'}) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/none.js",
        "/page/",
        "/page/chat",
        "/page/vendor/vendor.json",
        "/page/vendor/marked.LICENSE",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/%2fetc%2fpasswd",
    ],
)
async def test_no_other_file_can_be_had(bridge: BridgeUnderTest, path: str) -> None:
    async with bridge.http.get(path) as response:
        assert response.status == 404


async def test_all_that_the_page_names_is_there(bridge: BridgeUnderTest) -> None:
    """Every import of every module, and what the page links to."""
    async with stranger(bridge) as http:
        for path in sorted(FOLDER.rglob("*.js")):
            if "vendor" in path.parts:
                continue
            for name in re.findall(r'from "(\.[^"]+)"', path.read_text(encoding="utf-8")):
                target = (path.parent / name).resolve().relative_to(FOLDER)
                async with http.get(f"/page/{target}") as response:
                    assert response.status == 200, (path, name)
        for name in re.findall(r'(?:href|src)="(/page/[^"]+)"', (FOLDER / "index.html").read_text(encoding="utf-8")):
            async with http.get(name) as response:
                assert response.status == 200, name


async def test_of_a_private_model_nothing_is_told_without_a_key(bridge: BridgeUnderTest) -> None:
    async with stranger(bridge) as http, http.get("/page/about.json") as response:
        about = await response.json()
    assert (about["name"], about["public"], about["model"]) == ("Spyglass", False, None)
    assert about["grpc_port"] == bridge.server.port
    assert about["grpc_tls"] is False


async def test_of_a_public_model_everybody_is_told(server: FakeService) -> None:
    async with run_bridge_under_test(server, page="public") as bridge:
        await bridge.wait_ready()
        async with stranger(bridge) as http:
            async with http.get("/page/about.json") as response:
                about = await response.json()
            async with http.get("/v1/models") as response:
                assert response.status == 401
    assert about["public"] is True
    assert about["model"]["id"] == MODEL


async def test_without_the_page_only_the_reference_and_its_style_are_there(server: FakeService) -> None:
    async with run_bridge_under_test(server, page="off") as bridge:
        for path in ("/", "/page/main.js", "/page/index.html", "/page/about.json"):
            async with bridge.http.get(path) as response:
                assert response.status == 404, path
        async with stranger(bridge) as http:
            for path in ("/docs", "/page/theme.css", "/page/reference.css"):
                async with http.get(path) as response:
                    assert response.status == 200, path


async def test_nothing_in_the_page_breaks_its_own_policy() -> None:
    """No scripts, styles or handlers inside of HTML."""
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index) == []
