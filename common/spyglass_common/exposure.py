"""Whether an address can be reached from other machines, and the warning if it is not encrypted."""

import ipaddress


def is_local(address: str) -> bool:
    """Whether only this machine can reach HOST:PORT or unix:PATH. Names other than localhost may be any machine's."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].lower().removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposure_warning(setting: str, address: str) -> str:
    """Returns the warning to the operator of a non-local address without TLS."""
    return (
        f"--{setting} {address} can be reached from other machines without TLS: keys, prompts and answers can be read "
        f"on the way. Give --{setting}-tls-cert and --{setting}-tls-key, unless the network is private or a proxy "
        "in front adds TLS"
    )
