"""Decodes and validates a Start, field by field. A field that is not supported yet is refused by name."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import options_pb2
from spyglass_common import limits
from spyglass_common.trace_context import TRACEPARENT
from spyglass_server.codec.chat import GivenImage, ImageLimits, ToolUse, decode_chat, decode_tools
from spyglass_server.codec.checks import at_most, in_range, nothing_unknown
from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint
from spyglass_server.engine.messages import SamplingParams
from spyglass_server.errors import InvalidRequest, Unsupported
from spyglass_server.prompt.prompt_maker import ChatInput, Input, TextInput, TokensInput

_MAX_REQUEST_ID_CHARACTERS = 128

_NOT_THE_REQUEST = ("request_id", "timeout", "caller", "traceparent", "idempotency_key")
"""Fields that may differ between retries of a request."""

_NOT_HONOURED = ("cache_salt",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A validated Start. Attention to images is returned for `attention_layers`; () means all, None none."""

    request_id: str
    model: str
    input: Input
    images: tuple[GivenImage, ...]
    sampling: SamplingParams
    n: int
    max_tokens: int | None
    min_tokens: int
    top_logprobs: int | None
    prompt_logprobs: bool
    echo: bool
    running_usage: bool
    timings: bool
    attention_layers: tuple[int, ...] | None
    prediction: str
    shape: OutputConstraint | None
    tool_use: ToolUse | None
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    timeout_s: float | None
    caller_key: str | None
    priority: int
    idempotency_key: str | None
    traceparent: str
    """The caller's span in W3C format; empty if there is none."""

    @property
    def num_images(self) -> int:
        return len(self.input.images) if isinstance(self.input, ChatInput) else 0


def decode_start(start: pb.Start, image_limits: ImageLimits) -> Spec:
    """Validates a Start.

    Raises:
        InvalidRequest: a field is wrong, missing, or not supported yet; the error names it.
    """
    _refuse_unsupported(start)
    tool_use = decode_tools(start.chat)
    given, images = _decode_input(start, tool_use, image_limits)
    max_tokens = _optional_int(start.stopping, "max_tokens")
    return Spec(
        request_id=_request_id(start.request_id),
        model=start.model,
        input=given,
        images=images,
        sampling=_decode_sampling(start.sampling),
        n=in_range("n", start.n if start.HasField("n") else 1, 1, limits.MAX_CHOICES),
        max_tokens=max_tokens,
        min_tokens=in_range(
            "stopping.min_tokens", start.stopping.min_tokens, 0, min(max_tokens or limits.MAX_TOKENS, limits.MAX_TOKENS)
        ),
        top_logprobs=_decode_logprobs(start.output),
        prompt_logprobs=start.output.prompt_logprobs,
        timings=start.output.timings,
        echo=start.output.echo,
        running_usage=start.output.running_usage,
        attention_layers=_decode_attention(start.output),
        prediction=start.prediction,
        shape=_decode_shape(start, tool_use),
        tool_use=tool_use,
        stop=_decode_stop(start.stopping.strings),
        stop_token_ids=frozenset(at_most("stopping.token_ids", start.stopping.token_ids, limits.MAX_STOP_TOKEN_IDS)),
        ignore_eos=start.stopping.ignore_eos,
        timeout_s=_decode_timeout(start),
        caller_key=start.caller.bearer_key if start.HasField("caller") else None,
        priority=start.priority,
        idempotency_key=_decode_idempotency_key(start),
        traceparent=start.traceparent if TRACEPARENT.fullmatch(start.traceparent) else "",
    )


def request_digest(start: pb.Start) -> bytes:
    """Returns a digest of what a Start asks for, which is the same for retries of a request."""
    request = pb.Start()
    request.CopyFrom(start)
    for name in _NOT_THE_REQUEST:
        request.ClearField(name)  # type: ignore[arg-type]
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _decode_attention(output: options_pb2.Output) -> tuple[int, ...] | None:
    if not output.HasField("image_attention"):
        return None
    layers = at_most("output.image_attention.layers", output.image_attention.layers, limits.MAX_ATTENTION_LAYERS)
    return tuple(sorted(set(layers)))


def _decode_idempotency_key(start: pb.Start) -> str | None:
    if not start.HasField("idempotency_key"):
        return None
    key = start.idempotency_key
    if not (0 < len(key) <= limits.MAX_IDEMPOTENCY_KEY_CHARACTERS and key.isprintable()):
        raise InvalidRequest(
            f"an idempotency key has 1 to {limits.MAX_IDEMPOTENCY_KEY_CHARACTERS} printable characters",
            field="idempotency_key",
        )
    return key


def _refuse_unsupported(start: pb.Start) -> None:
    fields = {field.name for field, _ in start.ListFields()}
    for name in _NOT_HONOURED:
        if name in fields:
            raise Unsupported(name)
    nothing_unknown(start)


def _decode_input(
    start: pb.Start, tool_use: ToolUse | None, image_limits: ImageLimits
) -> tuple[Input, tuple[GivenImage, ...]]:
    match start.WhichOneof("input"):
        case "chat":
            return decode_chat(start.chat, tool_use.tools if tool_use else (), image_limits)
        case "text":
            return TextInput(start.text), ()
        case "tokens":
            return TokensInput(tuple(start.tokens.ids)), ()
        case _:
            raise InvalidRequest("one of chat, text and tokens is needed", field="chat")


def _decode_sampling(sampling: options_pb2.Sampling) -> SamplingParams:
    given = {field.name: value for field, value in sampling.ListFields()}
    top_p = in_range("sampling.top_p", given.get("top_p", 1.0), 0.0, 1.0)
    if top_p == 0:
        raise InvalidRequest("sampling.top_p must be above 0", field="sampling.top_p")
    return SamplingParams(
        temperature=in_range("sampling.temperature", given.get("temperature", 1.0), 0.0, limits.MAX_TEMPERATURE),
        top_p=top_p,
        top_k=given.get("top_k", 0),
        min_p=in_range("sampling.min_p", given.get("min_p", 0.0), 0.0, 1.0),
        seed=given.get("seed", secrets.randbits(64)),
        presence_penalty=in_range(
            "sampling.presence_penalty", given.get("presence_penalty", 0.0), -limits.MAX_PENALTY, limits.MAX_PENALTY
        ),
        frequency_penalty=in_range(
            "sampling.frequency_penalty", given.get("frequency_penalty", 0.0), -limits.MAX_PENALTY, limits.MAX_PENALTY
        ),
        repetition_penalty=in_range(
            "sampling.repetition_penalty",
            given.get("repetition_penalty", 1.0),
            limits.MIN_REPETITION_PENALTY,
            limits.MAX_REPETITION_PENALTY,
        ),
        logit_bias=_decode_bias(sampling),
    )


def _decode_bias(sampling: options_pb2.Sampling) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    biases = at_most(field, sorted(sampling.logit_bias.items()), limits.MAX_LOGIT_BIASES)
    return tuple(
        (token, in_range(field, bias, -limits.MAX_LOGIT_BIAS, limits.MAX_LOGIT_BIAS)) for token, bias in biases
    )


def _decode_logprobs(output: options_pb2.Output) -> int | None:
    top = in_range("output.top_logprobs", output.top_logprobs, 0, limits.MAX_TOP_LOGPROBS)
    if top and not output.logprobs:
        raise InvalidRequest("output.top_logprobs is only for logprobs", field="output.top_logprobs")
    if output.prompt_logprobs and not output.logprobs:
        raise InvalidRequest("output.prompt_logprobs is only for logprobs", field="output.prompt_logprobs")
    return top if output.logprobs else None


def _decode_shape(start: pb.Start, tool_use: ToolUse | None) -> OutputConstraint | None:
    given = start.format
    shape: OutputConstraint | None = None
    match given.WhichOneof("kind"):
        case "json_object":
            shape = OutputConstraint(ConstraintKind.JSON_OBJECT)
        case "json_schema":
            shape = OutputConstraint(ConstraintKind.JSON_SCHEMA, given.json_schema.schema_json)
        case "regex":
            shape = OutputConstraint(ConstraintKind.REGEX, given.regex)
        case "grammar":
            shape = OutputConstraint(ConstraintKind.LARK, given.grammar)
    if shape is not None and tool_use:
        raise InvalidRequest("format and tools do not go together, unless none may be called", field="format")
    for name in ("ignore_eos", "min_tokens"):
        if getattr(start.stopping, name) and (shape is not None or (tool_use and tool_use.needs_grammar)):
            raise InvalidRequest(
                f"stopping.{name} goes with free text only: a format says when an answer ends", field=f"stopping.{name}"
            )
    return shape


def _decode_stop(strings: Sequence[str]) -> tuple[str, ...]:
    for i, stop in enumerate(at_most("stopping.strings", strings, limits.MAX_STOP_STRINGS)):
        if not 1 <= len(stop) <= limits.MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"a stop string has 1 to {limits.MAX_STOP_CHARACTERS} characters", field=f"stopping.strings[{i}]"
            )
    return tuple(strings)


def _decode_timeout(start: pb.Start) -> float | None:
    if not start.HasField("timeout"):
        return None
    seconds = start.timeout.seconds + start.timeout.nanos / 1e9
    if seconds <= 0:
        raise InvalidRequest("timeout must be above 0", field="timeout")
    return seconds


def _optional_int(stopping: options_pb2.Stopping, name: str) -> int | None:
    if not stopping.HasField(name):  # type: ignore[arg-type]
        return None
    value: int = getattr(stopping, name)
    return in_range(f"stopping.{name}", value, 1, limits.MAX_INT32)


def _request_id(given: str) -> str:
    if len(given) > _MAX_REQUEST_ID_CHARACTERS or not (given.isprintable() or not given):
        raise InvalidRequest(
            f"request_id has at most {_MAX_REQUEST_ID_CHARACTERS} printable characters", field="request_id"
        )
    return given or "gen-" + secrets.token_hex(12)
