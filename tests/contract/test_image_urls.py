"""A1 to A10: images by URL, as a way into the network behind the server."""

import asyncio
import threading
import time
from collections.abc import Iterator

import aiohttp
import pytest

from bridge_setup import CHAT, config_for
from contract.doors import Doors, about_images, chat_body, refused
from contract.listeners import Listener, body, drip, endless, listen, redirect
from contract.oracle import ask_canary
from fake_service import BRIDGE_KEY
from pictures import disc, encoded
from spyglass_bridge.server import run_bridge
from stack import Stack

PARAM = "messages[0].content[0].image_url.url"


@pytest.fixture
def target() -> Iterator[Listener]:
    """Nobody may connect to it."""
    with listen() as listener:
        yield listener
        assert listener.num_connections == 0


def refuse(doors: Doors, url: str, within_s: float = 1.0) -> None:
    """The URL is refused, alone and behind a good image."""
    refused(lambda: doors.chat(about_images(url)), code="invalid_image", param=PARAM, within_s=within_s)


def refuse_host(doors: Doors, target: Listener, host: str) -> None:
    for url in (f"http://{host}:{target.port}/x.png", f"https://{host}:{target.port}/x.png"):
        refuse(doors, url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "127.0.0.1.", "0.0.0.0"])
def test_a01_loopback(doors: Doors, target: Listener, host: str) -> None:
    refuse_host(doors, target, host)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "169.254.170.2", "100.100.100.200", "[fd00:ec2::254]", "10.0.0.1", "192.168.0.1"]
)
def test_a02_metadata_and_private_addresses(doors: Doors, host: str) -> None:
    for url in (f"http://{host}/", f"http://{host}/latest/meta-data/"):
        refuse(doors, url)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.1",
        "127.0.1",
        "0",
        "017700000001",
        "127.0.0.1%2e",
        "１２７.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "%31%32%37.0.0.1",
    ],
)
def test_a03_unusual_forms_of_an_address(doors: Doors, target: Listener, host: str) -> None:
    refuse_host(doors, target, host)


@pytest.mark.parametrize(
    "host",
    [
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "[::1%25lo]",
    ],
)
def test_a04_ipv6(doors: Doors, target: Listener, host: str) -> None:
    refuse_host(doors, target, host)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/x",
        "//127.0.0.1:{port}/x",
        "http://2130706433:{port}/",
        "http://[::1]:{port}/",
        "file:/x",
    ],
)
def test_a05_a_redirect_to_loopback(doors: Doors, target: Listener, location: str) -> None:
    with listen(a=redirect(location.format(port=target.port)), b=redirect("/a")) as allowed:
        for path in ("a", "b"):
            refuse(doors, f"http://localhost:{allowed.port}/{path}")
        assert allowed.num_connections >= 3


def test_a05_a_redirect_to_an_allowed_host_is_followed(doors: Doors) -> None:
    with listen(a=redirect("/b"), b=body(encoded(disc("red")))) as allowed:
        assert doors.chat(about_images(f"http://localhost:{allowed.port}/a")).status == 200


async def resolve(host: str, port: int) -> list[str]:
    """Names that a stranger's DNS gives."""
    return {
        "loopback.example": ["127.0.0.1"],
        "both.example": ["93.184.216.34", "127.0.0.1"],
        "reverse.example": ["127.0.0.1", "93.184.216.34"],
        "six.example": ["2606:2800:220:1::1", "::1"],
        "mapped.example": ["::ffff:127.0.0.1"],
        "link.example": ["169.254.169.254"],
    }[host.rstrip(".")]


async def test_a06_a_name_that_resolves_to_loopback(stack: Stack, doors: Doors, target: Listener) -> None:
    """By a bridge of its own in front of the server: the system's resolver knows no such names."""
    headers = {"Authorization": f"Bearer {stack.key}"}
    async with (
        run_bridge(config_for(stack.grpc, bridge_key=BRIDGE_KEY), resolve) as bridge,
        aiohttp.ClientSession(base_url=bridge.address, headers=headers) as http,
    ):
        names = ("loopback", "both", "reverse", "six", "mapped", "link")
        for host in (*(f"{name}.example" for name in names), "LOOPBACK.example", "loopback.example."):
            content = about_images(f"http://{host.lower()}:{target.port}/x.png")
            async with asyncio.timeout(1), http.post(CHAT, json=chat_body(content)) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"], error["param"]) == (400, "invalid_image", PARAM), host


def test_a06_the_systems_own_names(doors: Doors, target: Listener) -> None:
    for host in ("localhost.localdomain", "ip6-localhost", "metadata.google.internal"):
        refuse(doors, f"http://{host}:{target.port}/x.png", within_s=10)  # a resolver may take its time


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "FILE:///etc/passwd",
        "ftp://localhost:{port}/x.png",
        "gopher://localhost:{port}/_x",
        "dict://localhost:{port}/x",
        "ws://localhost:{port}/x",
        "jar:http://localhost:{port}/x!/y",
        "javascript:alert(1)",
        "blob:http://localhost:{port}/x",
        "//localhost:{port}/x",
        "/etc/passwd",
        "x.png",
    ],
)
def test_a07_other_schemes(doors: Doors, target: Listener, url: str) -> None:
    refuse(doors, url.format(port=target.port))


@pytest.mark.parametrize(
    "url",
    [
        "http://good\\@127.0.0.1:{port}/",
        "http://localhost\\@127.0.0.1:{port}/",
        "http://127.0.0.1\\@localhost:{port}/",
        "http://localhost:{port}\\.example/",
        "http://user@localhost:{port}/",
        "http://user:word@localhost:{port}/",
        "http://:@localhost:{port}/",
        "http://@localhost:{port}/",
        "http://localhost:{port}@127.0.0.1:{port}/",
        "http://localhost#@127.0.0.1:{port}/",
        "http://localhost:{port}/\r\nHost: x",
        "http://localhost:{port}/\n",
        "http://localhost:{port}/\u0000",
        "http://localhost:{port}/\u007f",
        "http://local\thost:{port}/",
        " http://localhost:{port}/",
        "http://localhost:{port} /",
        "http://loc\u00adalhost:{port}/",
        "http://127.0.0.1%00.localhost:{port}/",
        "http://localhost:99999/",
        "http://localhost:-1/",
        "http:///x",
        "http://",
        "http:localhost:{port}/x",
    ],
)
def test_a08_urls_that_parsers_read_differently(doors: Doors, target: Listener, url: str) -> None:
    if "#@" in url:  # port 80 of localhost: what comes after # is a fragment
        refuse(doors, url.format(port=target.port), within_s=10)
    else:
        refuse(doors, url.format(port=target.port))


@pytest.mark.slow
def test_a09_a_source_that_drips(doors: Doors) -> None:
    """A byte a second; meanwhile others are served."""
    with listen(a=drip) as source:
        waits = list[float]()

        def others() -> None:
            while source.num_connections == 0:
                time.sleep(0.01)
            for _ in range(5):
                began = time.monotonic()
                ask_canary(doors)
                waits.append(time.monotonic() - began)

        thread = threading.Thread(target=others)
        thread.start()
        refuse(doors, f"http://localhost:{source.port}/a", within_s=10)
        thread.join()
        assert sorted(waits)[2] < 1


def test_a10_a_body_without_an_end(doors: Doors) -> None:
    with listen(a=endless, b=body(bytes((20 << 20) + 1))) as source:
        for path in ("a", "b"):
            url = f"http://localhost:{source.port}/{path}"
            # 20 MiB are read before that: at least until then others are served
            reply = refused(lambda url=url: doors.chat(about_images(url)), code="invalid_image", within_s=5)  # type: ignore[misc]
            assert "20971520" in reply.json["error"]["message"]
