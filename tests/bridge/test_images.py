"""Images: data URIs, guarded downloads, and their way to the server."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from google.rpc import code_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from bridge_setup import BridgeUnderTest, ask_about, run_bridge_under_test
from fake_service import PATIENCE_S, FakeService, Reply
from spyglass_bridge import fetch as fetch_module
from spyglass_bridge.addresses import AddressGuard
from spyglass_bridge.config import parse_allowed_hosts
from spyglass_bridge.errors import ApiError
from spyglass_bridge.images import ImageData, ImageUrl, parse_image
from spyglass_common.status import make_status

PARAM = "messages[0].content[1].image_url.url"
PNG = b"\x89PNG\r\n\x1a\nnot really"

Handler = Callable[[web.Request], Any]


class Origin:
    """A web server that holds images, and counts who connects."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[web.BaseRequest] = []
        self.answer: Handler = lambda request: web.Response(body=PNG, content_type="image/png")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.answer(request)  # type: ignore[arg-type]
        return await answer if asyncio.iscoroutine(answer) else answer  # type: ignore[no-any-return]


@asynccontextmanager
async def run_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    runner = web.ServerRunner(web.Server(origin.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin.port = runner.addresses[0][1]
    try:
        yield origin
    finally:
        await runner.cleanup()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with run_origin() as origin:
        yield origin


async def to_loopback(host: str, port: int) -> list[str]:
    """A resolver that knows some names of the tests."""
    known = {"images.example": ["127.0.0.1"], "both.example": ["93.184.216.34", "127.0.0.1"]}
    if host not in known:
        raise OSError("no such name")
    return known[host]


@pytest.fixture
async def allowed(server: FakeService) -> AsyncIterator[BridgeUnderTest]:
    """A bridge that may fetch from images.example, which is this machine."""
    names, networks = parse_allowed_hosts(("images.example",))
    async with run_bridge_under_test(
        server, to_loopback, allowed_image_names=names, allowed_image_networks=networks, max_image_bytes=5000
    ) as bridge:
        yield bridge


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


async def test_small_images_travel_inside_start(bridge: BridgeUnderTest) -> None:
    status, _ = await bridge.chat(messages=ask_about(data_uri(b"one"), data_uri(b"two")))
    assert status == 200
    parts = bridge.server.turns[0].start.chat.messages[0].parts
    assert [part.image.data for part in parts[1:]] == [b"one", b"two"]


async def test_large_images_follow_in_order_after_accepted(bridge: BridgeUnderTest) -> None:
    images = [b"a" * 700_000, b"b" * 700_000, b"c" * 300_000, bytes(range(256)) * 4096]
    status, _ = await bridge.chat(messages=ask_about(*map(data_uri, images)))
    assert status == 200
    call = bridge.server.turns[0]
    parts = call.start.chat.messages[0].parts[1:]
    assert [part.image.WhichOneof("source") for part in parts] == ["data", "announced", "data", "announced"]
    assert call.images == {1: images[1], 3: images[3]}
    assert call.largest_chunk == 256 << 10
    assert call.chunks_before_accepted == 0


async def test_a_url_is_fetched_and_sent(allowed: BridgeUnderTest, origin: Origin) -> None:
    status, _ = await allowed.chat(messages=ask_about(f"http://images.example:{origin.port}/a.png?x=1"))
    assert status == 200
    assert allowed.server.turns[0].images == {0: PNG}
    request = origin.requests[0]
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in request.headers
    assert "Authorization" not in request.headers


async def test_a_redirect_within_allowed_hosts_is_followed(allowed: BridgeUnderTest, origin: Origin) -> None:
    def answer(request: web.Request) -> web.Response:
        if request.path == "/a":
            return web.Response(status=302, headers={"Location": "/b"})
        return web.Response(body=PNG)

    origin.answer = answer
    assert (await allowed.chat(messages=ask_about(f"http://images.example:{origin.port}/a")))[0] == 200
    assert [request.path for request in origin.requests] == ["/a", "/b"]


HOSTILE_URLS = [
    "http://127.0.0.1:{port}/x.png",
    "http://169.254.169.254:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://0:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://224.0.0.1:{port}/",
    "http://10.0.0.1:{port}/",
    "http://100.64.0.1:{port}/",
    "http://localhost:{port}/",
    "http://both.example:{port}/",
    "file:///etc/passwd",
    "ftp://images.example:{port}/x",
    "gopher://images.example:{port}/x",
    "//images.example:{port}/x",
    "http://good\\@127.0.0.1:{port}/",
    "http://user@images.example:{port}/",
    "http://:@images.example:{port}/",
    "http://images.example:{port}/\r\nHost: x",
    "http://images.example:{port}/\u0000",
    "http://１２７.0.0.1:{port}/",
    "http://images.example:99999/",
    "http:///x",
    "not a url",
    "http://images.example/" + "x" * 10_000,
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_hostile_urls_are_refused_without_a_connection(
    allowed: BridgeUnderTest, origin: Origin, url: str
) -> None:
    status, body = await allowed.chat(messages=ask_about(url.replace("{port}", str(origin.port))))
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_image", PARAM)
    assert not origin.requests
    async with asyncio.timeout(PATIENCE_S):
        await allowed.server.turns[0].cancelled.wait()


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/secret", "//127.0.0.1:{port}/secret", "file:///x", "", "/a"]
)
async def test_redirects_are_checked_and_bounded(allowed: BridgeUnderTest, origin: Origin, target: str) -> None:
    location = target.replace("{port}", str(origin.port))
    origin.answer = lambda request: web.Response(status=302, headers={"Location": location})
    status, body = await allowed.chat(messages=ask_about(f"http://images.example:{origin.port}/a"))
    assert (status, body["error"]["code"]) == (400, "invalid_image")
    assert {request.path for request in origin.requests} == {"/a"}
    assert len(origin.requests) <= 4


async def test_a_network_may_be_allowed(server: FakeService, origin: Origin) -> None:
    names, networks = parse_allowed_hosts(("127.0.0.0/8",))
    async with run_bridge_under_test(
        server, to_loopback, allowed_image_names=names, allowed_image_networks=networks
    ) as bridge:
        for host in ("127.0.0.1", "images.example"):
            assert (await bridge.chat(messages=ask_about(f"http://{host}:{origin.port}/")))[0] == 200


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1000))


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"x")
    await asyncio.Event().wait()
    return response


@pytest.mark.parametrize(
    "answer",
    [
        _endless,
        _dripping,
        lambda request: web.Response(body=bytes(5001)),
        lambda request: web.Response(body=b""),
        lambda request: web.Response(status=404),
        lambda request: web.Response(body=PNG, headers={"Content-Encoding": "gzip"}),
    ],
)
async def test_bad_sources_are_given_up(
    allowed: BridgeUnderTest, origin: Origin, answer: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "_TOTAL_S", 0.3)
    origin.answer = answer
    status, body = await allowed.chat(messages=ask_about(f"http://images.example:{origin.port}/a"))
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_image", PARAM)


async def test_one_keys_slow_sources_leave_room_for_anothers(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for their turn are given up in time as well."""
    monkeypatch.setattr(fetch_module, "_TOTAL_S", 2.0)
    origin.answer = lambda request: _dripping(request) if "slow" in str(request.url) else web.Response(body=PNG)
    url = f"http://images.example:{origin.port}"
    guard = AddressGuard(*parse_allowed_hosts(("images.example",)))
    async with fetch_module.ImageFetcher(guard, 5000, to_loopback) as fetcher:
        slow = [asyncio.create_task(fetcher.fetch(f"{url}/slow", "worst")) for _ in range(64)]
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert await fetcher.fetch(f"{url}/good", "other") == PNG
        assert asyncio.get_running_loop().time() - began < 0.5
        assert {type(found) for found in await asyncio.gather(*slow, return_exceptions=True)} == {
            fetch_module.FetchFailed
        }
        assert asyncio.get_running_loop().time() - began < 3


async def test_nothing_is_fetched_for_a_generation_that_is_refused(allowed: BridgeUnderTest, origin: Origin) -> None:
    allowed.server.script = Reply(refusal=make_status(code_pb2.RESOURCE_EXHAUSTED, "as scripted", "too_many_requests"))
    status, _ = await allowed.chat(messages=ask_about(f"http://images.example:{origin.port}/a"))
    assert status == 429
    assert not origin.requests


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA A=",
        "data:image/png;base64,\r\n",
        "data:image/png;base64,AAAA====",
        "data:image/png;base64,AA==AA==",
        "data:image/png;base64,AA-_",
        "data:image/png,AAAA",
        "data:text/plain;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;charset;base64,AAAA",
        "data:image/png;base64;charset=utf-8,AAAA",
        "data:;name=" + "x" * 5000 + ";base64,AAAA",
        "data:image/png;base64,AAA%",
        "data:image/png;base64,AAA%C3%A4",
        "data:image/png;base64,AAAA%20",
        "data:",
        "data:image/png;base64," + "A" * 4000,
        "data:image/png;base64,ÄÖÜß",
    ],
)
def test_bad_data_uris_are_refused(uri: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_image(uri, "p", 1000)
    assert (caught.value.http_status, caught.value.code, caught.value.param) == (400, "invalid_image", "p")


@given(
    st.binary(min_size=1, max_size=1000),
    st.sampled_from(
        [
            "data:image/png;base64,",
            "DATA:image/JPEG;BASE64,",
            "data:image/webp;base64,",
            "data:;base64,",
            "data:;charset=utf-8;base64,",
            "data:image/png;charset=utf-8;base64,",
            'data:image/jpeg;name="a,b;c.jpg";charset=UTF-8;base64,',
            "data:application/octet-stream;base64,",
        ]
    ),
    st.sampled_from(
        [base64.b64encode, base64.encodebytes, lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n")]
    ),
    st.sampled_from([str, quote, lambda text: quote(text, safe="")]),
)
def test_data_uris_give_back_what_went_in(
    data: bytes, prefix: str, encode: Callable[[bytes], bytes], escape: Callable[[str], str]
) -> None:
    assert parse_image(prefix + escape(encode(data).decode()), "p", 1000) == ImageData(data, "p")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "data:image/png;base64,"),
        (base64.b64encode(PNG).decode(), "data:image/png;base64,"),
        (base64.b64encode(b"\xff\xd8\xff\xe0 JFIF").decode(), "data:image/jpeg;base64,"),
        (base64.b64encode(b"RIFF\x24\0\0\0WEBP").decode(), "data:image/webp;base64,"),
        (base64.b64encode(b"GIF89a").decode(), "data:image/gif;base64,"),
    ],
)
def test_the_refusal_of_what_is_no_url_says_what_to_do(url: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_image(url, "p", 1000)
    assert caught.value.code == "invalid_image"
    assert words in caught.value.message


@given(st.binary(max_size=60).map(base64.b64encode), st.data())
def test_junk_in_base64_is_never_taken(encoded: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(encoded)))
    junk = data.draw(st.sampled_from(" \t-_!,%é"))
    text = encoded.decode()
    with pytest.raises(ApiError):
        parse_image(f"data:image/png;base64,{text[:place]}{junk}{text[place:]}", "p", 1000)


@given(st.text() | st.text().map("data:".__add__))
@example("iVBORw0KGg")
def test_other_urls_are_left_to_the_fetcher(url: str) -> None:
    bare_base64 = ("/9j/", "iVBORw0KGg", "UklGR", "R0lGOD")
    if not url or url[:5].lower() == "data:" or url.startswith(bare_base64):
        with pytest.raises(ApiError):
            parse_image(url, "p", 1000)
    else:
        assert parse_image(url, "p", 1000) == ImageUrl(url, "p")
