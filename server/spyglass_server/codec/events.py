"""Encodes what happens to a generation as protobuf events."""

from collections.abc import Callable, Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.rate_limits import RateLimits
from spyglass_server.engine.messages import FinishReason, Logprobs
from spyglass_server.prompt.tool_calls import CallPiece

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


def accepted(event_id: int) -> pb.Event:
    """The generation has its place in the queue."""
    return pb.Event(id=event_id, accepted=pb.Accepted())


def started(event_id: int, prompt_tokens: int, cached_tokens: int, rate_limits: RateLimits | None) -> pb.Event:
    """The engine has scheduled it."""
    limits = None if rate_limits is None else rate_limits.to_proto()
    return pb.Event(
        id=event_id,
        started=pb.Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, rate_limits=limits),
    )


def prompt_echo(
    event_id: int, token_ids: Iterable[int] = (), text: str = "", logprobs: Iterable[pb.TokenLogprobs] = ()
) -> pb.Event:
    """The prompt, or probabilities of more of its tokens."""
    return pb.Event(id=event_id, prompt=pb.PromptEcho(token_ids=token_ids, text=text, logprobs=logprobs))


def delta(
    event_id: int,
    index: int,
    text: str,
    token_ids: Iterable[int],
    finish: FinishReason | None,
    stop_string: str | None,
    calls: Iterable[CallPiece] = (),
    logprobs: pb.TokenLogprobs | None = None,
    usage: pb.Usage | None = None,
) -> pb.Event:
    """More of one choice. There is one for every token: set field by field, it takes half the time."""
    event = pb.Event(id=event_id)
    more = event.delta
    more.index = index
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
    return event


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


def finished(event_id: int, usage: pb.Usage | None, error: status_pb2.Status | None) -> pb.Event:
    """The generation is over."""
    return pb.Event(id=event_id, finished=pb.Finished(usage=usage, error=error))


def timestamp(seconds: float | None) -> Timestamp | None:
    """A time in seconds since 1970 as a protobuf message."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(int(seconds * 1e6))
    return message
