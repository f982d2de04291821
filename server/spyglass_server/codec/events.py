"""Encodes what happens to a generation as protobuf events."""

from collections.abc import Callable, Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.rate_limits import RateLimits
from spyglass_server.engine.messages import FinishReason, ImageMap, Logprobs
from spyglass_server.images import ImageTiles
from spyglass_server.ledger.record import Record
from spyglass_server.metrics import EngineTotals, Failure
from spyglass_server.prompt.tool_calls import CallPiece
from spyglass_server.timeline import Timeline

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


def accepted(event_id: int) -> pb.Event:
    """The generation has its place in the queue."""
    return pb.Event(id=event_id, accepted=pb.Accepted())


def started(
    event_id: int, record: Record, rate_limits: RateLimits | None, image_grids: Iterable[pb.ImageGrid]
) -> pb.Event:
    """The engine has scheduled the generation, and its usage record is open."""
    limits = None if rate_limits is None else rate_limits.to_proto()
    return pb.Event(
        id=event_id,
        started=pb.Started(
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            rate_limits=limits,
            image_grids=image_grids,
        ),
    )


def prompt_echo(
    event_id: int, token_ids: Iterable[int] = (), text: str = "", logprobs: Iterable[pb.TokenLogprobs] = ()
) -> pb.Event:
    """The prompt, or logprobs of more of its tokens."""
    return pb.Event(id=event_id, prompt=pb.PromptEcho(token_ids=token_ids, text=text, logprobs=logprobs))


def new_delta(event_id: int, index: int) -> pb.Event:
    """More of one choice, with a delta to fill."""
    event = pb.Event(id=event_id)
    event.delta.index = index
    return event


def fill(
    more: pb.Delta,
    text: str,
    token_ids: Iterable[int],
    finish: FinishReason | None,
    stop_string: str | None,
    calls: Iterable[CallPiece] = (),
    logprobs: pb.TokenLogprobs | None = None,
    usage: pb.Usage | None = None,
    attention: pb.TokenAttention | None = None,
) -> None:
    """Fills a new delta. There is one per token, and setting it field by field takes half the time."""
    more.text = text
    more.token_ids.extend(token_ids)
    if finish is not None:
        more.finish_reason = _FINISH_REASONS[finish]
    if stop_string is not None:
        more.stop_string = stop_string
    for piece in calls:
        more.tool_calls.add(index=piece.call, id=piece.id, name=piece.name, arguments_json=piece.arguments)
    if logprobs is not None:
        more.logprobs.append(logprobs)
    if usage is not None:
        more.usage.CopyFrom(usage)
    if attention is not None:
        more.attention.append(attention)


def token_attention(token: bytes, maps: Iterable[ImageMap | None]) -> pb.TokenAttention:
    """What a token attends to in each image."""
    told = (pb.ImageMap() if one is None else pb.ImageMap(scale=one.scale, data=one.data) for one in maps)
    return pb.TokenAttention(bytes=token, maps=told)


def image_grid(image: ImageTiles, patches_per_side: int) -> pb.ImageGrid:
    """The patches of an image whose tiles have `patches_per_side` in each row and column."""
    patches_per_pixel = patches_per_side / image.pixels.shape[-1]
    return pb.ImageGrid(
        rows=image.rows * patches_per_side,
        columns=image.columns * patches_per_side,
        covered_rows=image.height * patches_per_pixel,
        covered_columns=image.width * patches_per_pixel,
    )


def token_logprobs(token: int, found: Logprobs, bytes_of: Callable[[int], bytes]) -> pb.TokenLogprobs:
    """A token's logprob with its alternatives."""
    return pb.TokenLogprobs(
        logprob=found.chosen,
        bytes=bytes_of(token),
        top=[
            pb.TokenLogprob(token_id=rival, logprob=logprob, bytes=bytes_of(rival))
            for rival, logprob in zip(found.top_tokens, found.top, strict=True)
        ],
    )


def refused(event_id: int, error: status_pb2.Status) -> pb.Event:
    """The generation was refused before it began."""
    return pb.Event(id=event_id, finished=pb.Finished(error=error))


def timings(timeline: Timeline, num_tokens: int) -> pb.Timings:
    """Where the time of a generation of `num_tokens` tokens went."""
    message = pb.Timings(
        first_token=duration(timeline.time_to_first_token_s), tokens_per_second=timeline.tokens_per_second(num_tokens)
    )
    for phase in timeline.phases():
        getattr(message, phase.name).FromNanoseconds(int(phase.duration_s * 1e9))
        message.total.FromNanoseconds(int((phase.end_s - timeline.began_s) * 1e9))
    return message


def cache_status(totals: EngineTotals) -> pb.CacheStatus:
    """Usage and hit counts of the caches."""
    return pb.CacheStatus(
        kv_cache_usage=totals.kv_cache_usage,
        image_cache_usage=totals.image_cache_usage,
        prefix_queries=totals.prefix_cache_queries,
        prefix_hits=totals.prefix_cache_hits,
        image_queries=totals.image_cache_queries,
        image_hits=totals.image_cache_hits,
        preemptions=totals.num_preemptions,
    )


def failure(found: Failure) -> pb.Failure:
    """A generation that could not be served."""
    return pb.Failure(time=timestamp(found.unix_s), code=code_pb2.Code.Value(found.code), reason=found.reason)


def duration(seconds: float | None) -> Duration | None:
    """A time in seconds as a protobuf message."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def timestamp(seconds: float | None) -> Timestamp | None:
    """A time in seconds since 1970 as a protobuf message."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(int(seconds * 1e6))
    return message
