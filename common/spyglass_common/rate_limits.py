"""What remains of a key's per-minute limits, as carried in protocol messages."""

from dataclasses import dataclass

from spyglass.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many per minute, how many remain, and the seconds until all are available again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits of requests and of tokens; None means no limit."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None

    @classmethod
    def from_proto(cls, limits: pb.RateLimits) -> "RateLimits | None":
        """Returns None if there is no limit at all."""
        read = cls(
            _read(limits.requests) if limits.HasField("requests") else None,
            _read(limits.tokens) if limits.HasField("tokens") else None,
        )
        return read if read.requests or read.tokens else None

    def to_proto(self) -> pb.RateLimits:
        """Converts the limits to a message."""
        return pb.RateLimits(
            requests=None if self.requests is None else _message(self.requests),
            tokens=None if self.tokens is None else _message(self.tokens),
        )


def _read(limit: pb.RateLimit) -> RateLimit:
    return RateLimit(limit.limit, limit.remaining, limit.reset.ToNanoseconds() / 1e9)


def _message(limit: RateLimit) -> pb.RateLimit:
    message = pb.RateLimit(limit=limit.limit, remaining=limit.remaining)
    message.reset.FromNanoseconds(round(limit.reset_s * 1e9))
    return message
