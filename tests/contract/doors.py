"""The public doors of a running Spyglass, HTTP and gRPC, with what every refusal there must hold to.

Counts the generations that were admitted, for the books; what is left behind is the oracle's.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
import httpx

from fakes import auth
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc
from spyglass_common.status import read_details, status_of
from stack import Stack

MODEL = "tiny"
OTHER_KEY = "sk-another-tenant"
"""Beside the stack's own."""
CHAT = "/v1/chat/completions"
TIMEOUT_S = 60.0
JSON = {"Content-Type": "application/json"}

_NUM_TRIES = 3
"""Of a time that is bounded the best of so many counts: other programs run beside."""
_LEAK = re.compile(r"Traceback|File \"|\bat 0x[0-9a-f]|\.py\b|/(?:home|tmp|usr|work|opt|root|site-packages)/")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer over HTTP, with the time until it was complete."""

    status: int
    text: str
    headers: Mapping[str, str]
    took_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def content(self) -> str:
        """The text of the first choice."""
        return str(self.json["choices"][0]["message"]["content"])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a generation over gRPC, in-band or by the whole call's status."""

    code: str
    reason: str | None
    field: str | None
    message: str
    took_s: float
    usage: pb.Usage | None = None
    text: str = ""
    has_started: bool = False
    retry_after_s: float | None = None


@dataclass
class Doors:
    """HTTP and gRPC of a stack, with one key. Closes with its context."""

    stack: Stack
    key: str
    num_admitted: int = 0
    """Generations that must have a usage record."""
    http: httpx.Client = field(init=False)
    channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(base_url=self.stack.http, headers=headers, timeout=TIMEOUT_S)
        self.channel = grpc.insecure_channel(self.stack.grpc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.channel.close()

    @property
    def stub(self) -> "inference_pb2_grpc.InferenceServiceStub":
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    def chat(self, content: Any = "Hi", **fields: Any) -> Reply:
        """Posts a chat request: four greedy tokens, unless the fields say otherwise."""
        return self.post(json.dumps(chat_body(content, **fields)).encode())

    def post(self, body: bytes | Iterable[bytes], path: str = CHAT, headers: Mapping[str, str] = JSON) -> Reply:
        """Posts a body as it is to a route of generations."""
        reply = self.request("POST", path, content=body, headers=headers)
        self.num_admitted += reply.status == 200
        return reply

    def request(self, method: str, path: str, **options: Any) -> Reply:
        """Any request."""
        began = time.monotonic()
        response = self.http.request(method, path, **options)
        took_s = time.monotonic() - began
        assert_clean(response.text)
        return Reply(status=response.status_code, text=response.text, headers=response.headers, took_s=took_s)

    def generate(self, start: pb.Start, timeout_s: float = TIMEOUT_S) -> Outcome:
        """Runs a generation over gRPC to its end."""
        began = time.monotonic()
        request = pb.GenerateRequest(id=1, start=start)
        call = self.stub.Generate(iter((request,)), metadata=auth(self.key), timeout=timeout_s)
        events = list[pb.Event]()
        try:
            for frame in call:
                events += frame.events
        except grpc.RpcError as error:
            outcome = _failed_call(error, time.monotonic() - began)
        else:
            outcome = _outcome(events, time.monotonic() - began)
        assert_clean(outcome.message)
        self.num_admitted += outcome.has_started
        return outcome


def chat_body(content: Any = "Hi", **fields: Any) -> dict[str, Any]:
    """The JSON of a chat request."""
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 4, **fields}


def about_images(*urls: str) -> list[dict[str, Any]]:
    """The content of a message that shows images and asks what they are."""
    return [
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
        {"type": "text", "text": "What is it?"},
    ]


def _failed_call(error: Any, took_s: float) -> Outcome:
    status = status_of(error)
    details = read_details(status) if status else None
    return Outcome(
        code=error.code().name,
        reason=details.reason if details else None,
        field=details.field if details else None,
        message=error.details() or "",
        took_s=took_s,
        retry_after_s=details.retry_after_s if details else None,
    )


def _outcome(events: list[pb.Event], took_s: float) -> Outcome:
    [finished] = [event.finished for event in events if event.HasField("finished")]
    details = read_details(finished.error)
    return Outcome(
        code={code.value[0]: code.name for code in grpc.StatusCode}[finished.error.code],
        reason=details.reason,
        field=details.field,
        message=finished.error.message,
        took_s=took_s,
        usage=finished.usage if finished.HasField("usage") else None,
        text="".join(event.delta.text for event in events if event.HasField("delta")),
        has_started=any(event.HasField("started") for event in events),
        retry_after_s=details.retry_after_s,
    )


def assert_clean(text: str) -> None:
    """No path of a file, no address of an object and no traceback may be seen."""
    leak = _LEAK.search(text)
    assert leak is None, f"a reply shows {leak[0]!r}: {text[max(0, leak.start() - 200) : leak.end() + 200]}"


A = TypeVar("A", Reply, Outcome)


def quick(ask: Callable[[], A], within_s: float) -> A:
    """Asks until an answer has come in time, and returns that; fails if none of a few does."""
    tries = list[A]()
    while len(tries) < _NUM_TRIES:
        tries.append(ask())
        if tries[-1].took_s < within_s:
            return tries[-1]
    times = ", ".join(f"{each.took_s * 1e3:.0f}" for each in tries)
    raise AssertionError(f"answers took {times} ms, not {within_s * 1e3:.0f}: {tries[-1]}")


def assert_error(
    reply: Reply, statuses: int | tuple[int, ...] = 400, code: str | None = None, param: str | None = None
) -> None:
    """It is a refusal in OpenAI's form, with one of these statuses, and with this code and param if they are given."""
    allowed = (statuses,) if isinstance(statuses, int) else statuses
    assert reply.status in allowed, f"{reply.status}, not {allowed}: {reply.text[:500]}"
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}, error
    assert error["message"], error
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error"), error
    assert isinstance(error["code"], str), error
    assert error["param"] is None or isinstance(error["param"], str), error
    assert code is None or error["code"] == code, error
    assert param is None or error["param"] == param, error


def refused(
    ask: Callable[[], Reply],
    statuses: int | tuple[int, ...] = 400,
    *,
    code: str | None = None,
    param: str | None = None,
    within_s: float = 1.0,
) -> Reply:
    """Asks over HTTP and checks the refusal and its time."""
    reply = quick(ask, within_s)
    assert_error(reply, statuses, code, param)
    return reply


def refused_grpc(
    ask: Callable[[], Outcome],
    code: str = "INVALID_ARGUMENT",
    *,
    reason: str | None = None,
    field: str | None = None,
    within_s: float = 1.0,
) -> Outcome:
    """Asks over gRPC and checks the refusal and its time."""
    outcome = quick(ask, within_s)
    assert outcome.code == code, outcome
    assert reason is None or outcome.reason == reason, outcome
    assert field is None or outcome.field == field, outcome
    assert not outcome.has_started, outcome
    return outcome
