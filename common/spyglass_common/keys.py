"""The scopes and limits of keys, as carried in protocol messages."""

from dataclasses import asdict, dataclass, fields

from spyglass.v1 import admin_pb2 as pb

SCOPES = {"generate": pb.SCOPE_GENERATE, "admin": pb.SCOPE_ADMIN, "gateway": pb.SCOPE_GATEWAY}
"""What a key may do, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What a key may use: per minute, at a time, and in US dollars per day and per month, in UTC.

    None means no limit.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_generations: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None

    @classmethod
    def from_proto(cls, limits: pb.KeyLimits) -> "KeyLimits":
        return cls(**{field.name: value for field, value in limits.ListFields()})

    def to_proto(self) -> pb.KeyLimits:
        """Converts the limits to a message."""
        return pb.KeyLimits(**asdict(self))


KEY_LIMITS = tuple(field.name for field in fields(KeyLimits))
"""The names of the limits."""
