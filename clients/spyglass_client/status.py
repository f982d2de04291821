"""A server's status: its state, load and caches."""

from dataclasses import dataclass
from datetime import UTC, datetime

from google.rpc import code_pb2

from spyglass.v1 import inference_pb2 as pb

_STATES = {
    pb.SERVER_STATE_LOADING: "loading",
    pb.SERVER_STATE_READY: "ready",
    pb.SERVER_STATE_BUSY: "busy",
    pb.SERVER_STATE_STALLED: "stalled",
    pb.SERVER_STATE_DRAINING: "draining",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """Fractions of the caches that running generations hold, from 0 to 1, and the caches' hit rates since the server
    started, None without lookups."""

    kv_cache_usage: float
    image_cache_usage: float
    prefix_hit_rate: float | None
    image_hit_rate: float | None
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A generation that the server could not serve: when it ended, with a canonical code and a reason."""

    time: datetime
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server's status.

    `state` is loading, ready, busy, stalled or draining. Ages are in seconds, None without work. `models`
    are names of one model; they and the device are empty while it is first loaded.
    """

    state: str
    models: tuple[str, ...]
    device: str
    dtype: str
    quantization: str
    running: int
    waiting: int
    max_pending: int
    last_step_age_s: float | None
    last_token_age_s: float | None
    output_tokens_per_second: float
    started: datetime
    cache: CacheStatus
    engine_restarts: int
    latest_failures: tuple[Failure, ...]

    @classmethod
    def from_proto(cls, status: pb.GetStatusResponse) -> "ServerStatus":
        cache = status.cache
        has_step, has_token = status.HasField("last_step_age"), status.HasField("last_token_age")
        return cls(
            state=_STATES.get(status.state, "unknown"),
            models=tuple(status.models),
            device=status.device,
            dtype=status.dtype,
            quantization=status.quantization,
            running=status.running,
            waiting=status.waiting,
            max_pending=status.max_pending,
            last_step_age_s=status.last_step_age.ToNanoseconds() / 1e9 if has_step else None,
            last_token_age_s=status.last_token_age.ToNanoseconds() / 1e9 if has_token else None,
            output_tokens_per_second=status.output_tokens_per_second,
            started=status.started.ToDatetime(UTC),
            cache=CacheStatus(
                kv_cache_usage=cache.kv_cache_usage,
                image_cache_usage=cache.image_cache_usage,
                prefix_hit_rate=cache.prefix_hits / cache.prefix_queries if cache.prefix_queries else None,
                image_hit_rate=cache.image_hits / cache.image_queries if cache.image_queries else None,
                preemptions=cache.preemptions,
            ),
            engine_restarts=status.engine_restarts,
            latest_failures=tuple(
                Failure(time=failure.time.ToDatetime(UTC), code=code_pb2.Code.Name(failure.code), reason=failure.reason)
                for failure in status.latest_failures
            ),
        )
