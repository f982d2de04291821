"""The framing of server-sent events."""

DONE = b"data: [DONE]\n\n"


def frame(*payloads: str) -> bytes:
    """Returns one `data:` event per payload, which must be JSON on a single line."""
    return "".join([f"data: {payload}\n\n" for payload in payloads]).encode()
