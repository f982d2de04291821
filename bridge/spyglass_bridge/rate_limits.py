"""OpenAI's x-ratelimit headers."""

from spyglass_common.rate_limits import RateLimits


def rate_limit_headers(limits: RateLimits | None) -> dict[str, str]:
    """Returns headers for what remains of a key's per-minute limits; none for an absent limit."""
    headers: dict[str, str] = {}
    found = {"requests": limits.requests, "tokens": limits.tokens} if limits else {}
    for name, limit in found.items():
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(limit.remaining)
            headers[f"x-ratelimit-reset-{name}"] = _duration(limit.reset_s)
    return headers


def _duration(seconds: float) -> str:
    """Formats a duration as OpenAI does: 120ms, 8.64s, 1m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
