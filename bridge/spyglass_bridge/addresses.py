"""Which URLs and addresses an image may be fetched from: the guard against server-side request forgery.

It checks the exact string used for the connection, and every address that a name resolves to.
"""

import ipaddress
import re
from dataclasses import dataclass

from yarl import URL

from spyglass_bridge.config import Network

_MAX_URL_LENGTH = 8192
# Printable ASCII without the backslash, which only some parsers read as a slash.
_PLAIN_URL = re.compile(r"[\x21-\x5b\x5d-\x7e]+")
_AUTHORITY = re.compile(r"//|[/?#]")
"""Splits a URL so that its authority comes second."""
_NUMERIC_LABEL = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# 6to4 and Teredo carry an IPv4 address that a relay would connect to.
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))


class AddressRefused(Exception):
    """The URL or its address is not allowed for images; the text says why."""


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Allows public addresses, and the names and networks that the operator adds."""

    allowed_names: frozenset[str] = frozenset()
    allowed_networks: tuple[Network, ...] = ()

    def check_url(self, text: str) -> URL:
        """Parses a URL and checks whether it may be fetched, as far as possible without resolving its name.

        Raises AddressRefused.
        """
        if len(text) > _MAX_URL_LENGTH:
            raise AddressRefused("the URL is too long")
        if not _PLAIN_URL.fullmatch(text):
            raise AddressRefused("the URL holds a character that must be percent-encoded")
        try:
            url = URL(text)
            port = url.port
        except ValueError:
            raise AddressRefused("the URL cannot be parsed") from None
        host = url.raw_host
        if url.scheme not in ("http", "https"):
            raise AddressRefused("the URL is neither http(s) nor data:image/…;base64,…")
        if not host or not port:
            raise AddressRefused("the URL has no host")
        if "@" in _AUTHORITY.split(text, maxsplit=2)[1]:  # even if empty, which parsers drop
            raise AddressRefused("the URL holds user information")
        self._check_host(host)
        return url

    def check_addresses(self, host: str, addresses: list[str]) -> None:
        """Checks every address that a name resolves to, so that no unchecked one can be chosen later.

        Raises AddressRefused.
        """
        if not addresses:
            raise AddressRefused("the host has no address")
        if _plain_name(host) in self.allowed_names:
            return
        for address in addresses:
            self._check_address(ipaddress.ip_address(address))

    def _check_host(self, host: str) -> None:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            last_label = _plain_name(host).rpartition(".")[2]
            if _NUMERIC_LABEL.fullmatch(last_label):
                # 2130706433, 0x7f000001, 127.1: forms of an address that only some parsers accept.
                raise AddressRefused("the host is an address in an unusual form") from None
            return
        self._check_address(address)

    def _check_address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        effective = mapped or address
        if any(effective in network for network in self.allowed_networks):
            return
        if not _is_public(effective):
            raise AddressRefused("the host is not a public one")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _GLOBAL_UNICAST or any(address in tunnel for tunnel in _TUNNELS)
    ):
        return False
    return address.is_global and not address.is_multicast


def _plain_name(host: str) -> str:
    return host.lower().rstrip(".")
