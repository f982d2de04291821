"""What a server reports about itself and about the caller's key: models, prices, usage."""

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.answer import Usage


@dataclass(frozen=True, slots=True)
class Pricing:
    """US dollars for a million tokens."""

    input_tokens: float
    output_tokens: float
    cached_input_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What a model takes of a device's memory, in bytes, and what its caches hold: tokens of text, tiles of images.

    Of a CPU, `device_bytes` is the memory of the machine, whose name is `host`. A server that does not tell leaves all
    of it empty.
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
    """How most weights are kept where that is coarser than `dtype`: "fp8", "int8" or nothing."""
    memory: ModelMemory
    """Of the first device, where several share the model."""
    ranks: tuple[ModelMemory, ...]
    """Of all devices, where several share the model."""

    @classmethod
    def from_proto(cls, model: pb.Model) -> "ModelInfo":
        pricing = model.pricing
        return cls(
            id=model.id,
            description=model.description,
            created=_moment(model.created),
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

    request_id: str
    model: str
    started: datetime
    finished: datetime | None
    usage: Usage
    outcome: str

    @classmethod
    def from_proto(cls, record: pb.UsageRecord) -> "UsageRecord":
        return cls(
            request_id=record.request_id,
            model=record.model,
            started=_moment(record.started),
            finished=_moment(record.finished) if record.HasField("finished") else None,
            usage=Usage.from_proto(record.usage),
            outcome=record.outcome,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummary:
    """What a key has used so far, with its latest generations, newest first, if they were asked for."""

    key_id: str
    generations: int
    prompt_tokens: int
    completion_tokens: int
    estimated_cost: float
    records: tuple[UsageRecord, ...]

    @classmethod
    def from_proto(cls, usage: pb.GetUsageResponse) -> "UsageSummary":
        return cls(
            key_id=usage.key_id,
            generations=usage.generations,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            estimated_cost=usage.estimated_cost,
            records=tuple(UsageRecord.from_proto(record) for record in usage.records),
        )


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
