"""Downloads the images that a request names by URL.

The HTTP client for untrusted URLs is bounded in time, size, number and redirects, uses no cookies, proxies or
compression, and connects only to addresses that `AddressGuard` allows.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from spyglass_bridge.addresses import AddressGuard, AddressRefused
from spyglass_common.fair_slots import FairSlots

# (host, port) to numeric addresses; raises OSError.
Resolve = Callable[[str, int], Awaitable[list[str]]]

_TOTAL_S = 9.5
_MAX_REDIRECTS = 3
_MAX_AT_ONCE = 16
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "spyglass"}


class FetchFailed(Exception):
    """The image could not be fetched; the text may be shown to the caller."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Resolves a host with the system's resolver."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


class ImageFetcher:
    """Fetches images for all requests; use it as an async context manager."""

    def __init__(self, guard: AddressGuard, max_bytes: int, resolve: Resolve = resolve_by_system) -> None:
        self._guard = guard
        self._max_bytes = max_bytes
        self._slots = FairSlots(_MAX_AT_ONCE, share=_MAX_AT_ONCE // 2)
        self._session = aiohttp.ClientSession(
            # No connection is reused, so that each one is checked.
            connector=aiohttp.TCPConnector(
                resolver=_GuardedResolver(guard, resolve), use_dns_cache=False, force_close=True, limit=0
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> "ImageFetcher":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str, tenant: Hashable) -> bytes:
        """Returns the encoded image. Tenants take turns. Raises FetchFailed."""
        try:
            async with asyncio.timeout(_TOTAL_S), self._slots.hold(tenant):
                return await self._follow(url)
        except AddressRefused as error:
            raise FetchFailed(f"The image URL is refused: {error}.") from error
        except TimeoutError as error:
            raise FetchFailed("The image took too long to fetch.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchFailed("The image could not be fetched.") from error

    async def _follow(self, text: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            url = self._guard.check_url(text)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response)
                target = response.headers.get("Location")
            if not target:
                raise FetchFailed("The image URL redirects to nowhere.")
            text = str(url.join(URL(target)))
        raise FetchFailed("The image URL redirects too often.")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise FetchFailed(f"The image's server answered {response.status}.")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchFailed("The image's server compressed it although it was asked not to.")
        too_large = FetchFailed(f"The image is larger than {self._max_bytes} bytes.")
        if (response.content_length or 0) > self._max_bytes:
            raise too_large
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_bytes:
                raise too_large
        if not data:
            raise FetchFailed("The image is empty.")
        return bytes(data)


class _GuardedResolver(AbstractResolver):
    """Passes the connector only addresses that the guard has checked."""

    def __init__(self, guard: AddressGuard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._resolve(host, port)
        self._guard.check_addresses(host, addresses)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Does nothing: there are no resources to close."""
