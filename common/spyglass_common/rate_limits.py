"""What a key has left of its limits by the minute, as messages of the protocol carry it."""

from dataclasses import dataclass

from spyglass.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many in a minute, how many are left, and after how many seconds all are there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Those of requests and of tokens; None where there is no limit."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None

    @classmethod
    def from_proto(cls, limits: pb.RateLimits) -> "RateLimits | None":
        """None where there is no limit at all."""
        read = cls(
            _read(limits.requests) if limits.HasField("requests") else None,
            _read(limits.tokens) if limits.HasField("tokens") else None,
        )
        return read if read.requests or read.tokens else None

    def to_proto(self) -> pb.RateLimits:
        """The message for it."""
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
