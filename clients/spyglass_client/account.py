"""What a server reports about itself and about the caller's key: models, prices, usage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.answer import Usage


@dataclass(frozen=True, slots=True)
class Pricing:
    """US dollars per million tokens."""

    input_tokens: float
    output_tokens: float
    cached_input_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """A model's use of a device's memory, in bytes, and its caches' capacity in text tokens and image tiles.

    For a CPU, `device_bytes` is the machine's memory; `host` is the machine's name. All fields are empty if the server
    does not report them.
    """

    host: str
    device_name: str
    device_bytes: int
    weight_bytes: int
    kv_cache_tokens: int
    kv_cache_bytes: int
    image_cache_tiles: int
    image_cache_bytes: int

    @classmethod
    def from_proto(cls, memory: pb.ModelMemory) -> "ModelMemory":
        return cls(
            host=memory.host,
            device_name=memory.device_name,
            device_bytes=memory.device_bytes,
            weight_bytes=memory.weight_bytes,
            kv_cache_tokens=memory.kv_cache_tokens,
            kv_cache_bytes=memory.kv_cache_bytes,
            image_cache_tiles=memory.image_cache_tiles,
            image_cache_bytes=memory.image_cache_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model and its terms. Lengths are in tokens; `created` is when the server loaded it."""

    id: str
    description: str
    created: datetime
    context_length: int
    max_tokens: int
    pricing: Pricing
    dtype: str
    max_images: int
    max_image_bytes: int
    tags: tuple[str, ...]
    quantization: str
    """How most weights are stored if coarser than `dtype`: "fp8", "int8" or empty."""
    memory: ModelMemory
    """Memory of the first device, if several share the model."""
    ranks: tuple[ModelMemory, ...]
    """Memory of all devices, if several share the model."""

    @classmethod
    def from_proto(cls, model: pb.Model) -> "ModelInfo":
        pricing = model.pricing
        return cls(
            id=model.id,
            description=model.description,
            created=moment(model.created),
            context_length=model.context_length,
            max_tokens=model.max_tokens,
            pricing=Pricing(pricing.input_tokens, pricing.output_tokens, pricing.cached_input_tokens),
            dtype=model.dtype,
            max_images=model.max_images,
            max_image_bytes=model.max_image_bytes,
            tags=tuple(model.tags),
            quantization=model.quantization,
            memory=ModelMemory.from_proto(model.memory),
            ranks=tuple(map(ModelMemory.from_proto, model.ranks)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One metered generation. `finished` is None and `outcome` empty while it runs."""

    tenant: str
    key_id: str
    request_id: str
    model: str
    started: datetime
    finished: datetime | None
    usage: Usage
    images: int
    outcome: str

    @classmethod
    def from_proto(cls, record: pb.UsageRecord) -> "UsageRecord":
        return cls(
            tenant=record.tenant,
            key_id=record.key_id,
            request_id=record.request_id,
            model=record.model,
            started=moment(record.started),
            finished=optional_moment(record, "finished"),
            usage=Usage.from_proto(record.usage),
            images=record.images,
            outcome=record.outcome,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """Usage of one group of generations; only the grouping fields among the first four are set."""

    tenant: str
    key_id: str
    model: str
    day: str
    generations: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    estimated_cost: float

    @classmethod
    def from_proto(cls, each: pb.UsageSum) -> "UsageSum":
        return cls(
            tenant=each.tenant,
            key_id=each.key_id,
            model=each.model,
            day=each.day,
            generations=each.generations,
            prompt_tokens=each.prompt_tokens,
            cached_tokens=each.cached_tokens,
            completion_tokens=each.completion_tokens,
            images=each.images,
            estimated_cost=each.estimated_cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummary:
    """A key's usage so far, with sums by group and its latest generations, newest first, if requested."""

    key_id: str
    tenant: str
    generations: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    estimated_cost: float
    sums: tuple[UsageSum, ...]
    records: tuple[UsageRecord, ...]

    @classmethod
    def from_proto(cls, usage: pb.GetUsageResponse) -> "UsageSummary":
        return cls(
            key_id=usage.key_id,
            tenant=usage.tenant,
            generations=usage.generations,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            images=usage.images,
            estimated_cost=usage.estimated_cost,
            sums=tuple(map(UsageSum.from_proto, usage.sums)),
            records=tuple(UsageRecord.from_proto(record) for record in usage.records),
        )


GROUPS = {
    "tenant": pb.USAGE_GROUP_TENANT,
    "key": pb.USAGE_GROUP_KEY,
    "model": pb.USAGE_GROUP_MODEL,
    "day": pb.USAGE_GROUP_DAY,
}


def usage_filter(model: str, since: datetime | None, until: datetime | None) -> pb.UsageFilter:
    """Builds the filter for the generations to count."""
    chosen = pb.UsageFilter(model=model)
    if since is not None:
        chosen.since.FromDatetime(since)
    if until is not None:
        chosen.until.FromDatetime(until)
    return chosen


def usage_groups(names: Sequence[str]) -> "list[pb.UsageGroup.ValueType]":
    """Converts names of groups to the protocol's. Raises ValueError for a name that is not in GROUPS."""
    if unknown := [name for name in names if name not in GROUPS]:
        raise ValueError(f"usage cannot be grouped by {unknown[0]!r}: use {', '.join(GROUPS)}")
    return [GROUPS[name] for name in names]


def optional_moment(message: Any, field: str) -> datetime | None:
    """Returns a time field of a message, or None if it is unset."""
    return moment(getattr(message, field)) if message.HasField(field) else None


def moment(timestamp: Timestamp) -> datetime:
    """Converts a timestamp to a time in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)
