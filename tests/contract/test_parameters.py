"""A22 to A26: parameters that are out of range, or not numbers, or far too many. Refused in under 50 ms."""

import json
import math
from typing import Any

import pytest

from contract.doors import MODEL, Doors, chat_body, refused, refused_grpc
from fakes import chat
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import options_pb2

QUICK_S = 0.05


def refuse(doors: Doors, param: str | None = None, code: str | None = None, **fields: Any) -> None:
    body = json.dumps(chat_body(**fields)).encode()
    refused(lambda: doors.post(body), param=param, code=code, within_s=QUICK_S)


def refuse_grpc(doors: Doors, start: pb.Start, field: str | None = None, reason: str | None = None) -> None:
    refused_grpc(lambda: doors.generate(start), field=field, reason=reason, within_s=QUICK_S)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 10**9),
        ("n", 0),
        ("n", -1),
        ("n", 5),
        ("n", 1.5),
        ("n", "2"),
        ("n", True),
        ("top_logprobs", 10**6),
        ("top_logprobs", -1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**63),
        ("max_tokens", 2**64),
        ("max_tokens", 2**31),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", 2**63),
        ("min_tokens", 5),
        ("min_tokens", -1),
        ("min_tokens", 2**63),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", 1e308),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 2**63),
        ("min_p", 2),
        ("seed", 2**64),
        ("seed", 0.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e9),
        ("stream", "yes"),
        ("logprobs", 5),
    ],
)
def test_a22_out_of_range(doors: Doors, name: str, value: Any) -> None:
    fields: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    refuse(doors, name, **fields | {name: value})


@pytest.mark.parametrize(
    ("field", "start"),
    [
        ("n", chat("Hi", n=10**9)),
        ("n", chat("Hi", n=0)),
        ("output.top_logprobs", chat("Hi", output=options_pb2.Output(logprobs=True, top_logprobs=10**6))),
        ("stopping.max_tokens", chat("Hi", stopping=options_pb2.Stopping(max_tokens=0))),
        ("stopping.max_tokens", chat("Hi", stopping=options_pb2.Stopping(max_tokens=2**32 - 1))),
        ("stopping.min_tokens", chat("Hi", stopping=options_pb2.Stopping(max_tokens=4, min_tokens=5))),
        ("stopping.min_tokens", chat("Hi", stopping=options_pb2.Stopping(min_tokens=2**32 - 1))),
        ("sampling.temperature", chat("Hi", sampling=options_pb2.Sampling(temperature=-1))),
        ("sampling.top_p", chat("Hi", sampling=options_pb2.Sampling(top_p=0))),
        ("sampling.repetition_penalty", chat("Hi", sampling=options_pb2.Sampling(repetition_penalty=0))),
    ],
)
def test_a22_out_of_range_over_grpc(doors: Doors, field: str, start: pb.Start) -> None:
    refuse_grpc(doors, start, field)


NUMBERS = [
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "max_tokens",
    "n",
    "seed",
    "top_k",
    "min_tokens",
]
NOT_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "nan", "1e", "0x10", "01", "+1", "1_000", '"NaN"']


@pytest.mark.parametrize("name", NUMBERS)
def test_a23_not_a_number(doors: Doors, name: str) -> None:
    for value in (*NOT_NUMBERS, "9" * 5000, "-" + "9" * 5000, "0." + "9" * 5000 + "e400", "1e" + "9" * 5000):
        body = json.dumps(chat_body(**{name: "HERE"})).replace('"HERE"', value).encode()
        refused(lambda body=body: doors.post(body), within_s=QUICK_S)  # type: ignore[misc]
    for value in ("NaN", "1e999", "9" * 5000):
        bias = json.dumps(chat_body(logit_bias={"5": "HERE"})).replace('"HERE"', value).encode()
        refused(lambda bias=bias: doors.post(bias), within_s=QUICK_S)  # type: ignore[misc]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a23_not_a_number_over_grpc(doors: Doors, value: float) -> None:
    names = NUMBERS[:6]
    for name in names:
        sampling = options_pb2.Sampling(**{name: value})  # type: ignore[arg-type]
        refuse_grpc(doors, chat("Hi", sampling=sampling), f"sampling.{name}")
    refuse_grpc(doors, chat("Hi", sampling=options_pb2.Sampling(logit_bias={5: value})), "sampling.logit_bias")


@pytest.mark.parametrize(
    ("stop", "param"),
    [
        (["x"] * 10_000, "stop"),
        ([f"s{i}" for i in range(17)], "stop"),
        ("", "stop"),
        ([""], "stop[0]"),
        (["x", ""], "stop[1]"),
        (["x" * 100_000], "stop[0]"),
        ("x" * 257, "stop"),
        ([["x"]], None),
        ([1], None),
        ({"x": "y"}, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a24_stop_strings(doors: Doors, stop: Any, param: str | None) -> None:
    refuse(doors, stop=stop)
    if isinstance(stop, list) and all(isinstance(each, str) for each in stop):
        start = chat("Hi", stopping=options_pb2.Stopping(strings=stop))
        refuse_grpc(doors, start, param.replace("stop", "stopping.strings") if param else None)


@pytest.mark.parametrize(
    "bias",
    [
        {str(i): 1 for i in range(1025)},
        {str(10**6): 1},
        {str(2**31): 1},
        {str(2**64): 1},
        {"-1": 1},
        {"x": 1},
        {"": 1},
        {"1.5": 1},
        {"５": 1},
        {"5": 101},
        {"5": "1"},
        {"5": None},
        [1, 2],
    ],
    ids=lambda bias: str(bias)[:20],
)
def test_a25_biases(doors: Doors, bias: Any) -> None:
    refuse(doors, logit_bias=bias)


def test_a25_a_million_biases(doors: Doors) -> None:
    refuse(doors, logit_bias={str(i): 1 for i in range(10**6)})


def test_a25_biases_over_grpc(doors: Doors) -> None:
    for biases in (dict.fromkeys(range(1025), 1.0), dict.fromkeys(range(200000), 1.0), {10**6: 1.0}, {5: 101.0}):
        start = chat("Hi", sampling=options_pb2.Sampling(logit_bias=biases))
        refused_grpc(lambda start=start: doors.generate(start), field="sampling.logit_bias")  # type: ignore[misc]
    million = chat("Hi", sampling=options_pb2.Sampling(logit_bias=dict.fromkeys(range(10**6), 1.0)))
    refused_grpc(lambda: doors.generate(million), "RESOURCE_EXHAUSTED")  # a message is too large


def test_a26_a_prompt_over_the_context(doors: Doors) -> None:
    """By a little, by much, and by far more than is tokenized at all."""
    code = "context_length_exceeded"
    for length in (4096, 20_000, 1_000_000):
        within_s = QUICK_S if length < 10**6 else 1.0  # a megabyte takes a moment to be sent and read
        body = json.dumps(chat_body("x" * length)).encode()
        refused(lambda body=body: doors.post(body), code=code, param="messages", within_s=within_s)  # type: ignore[misc]
        text = json.dumps({"model": MODEL, "prompt": "x" * length}).encode()
        refused(
            lambda text=text: doors.post(text, "/v1/completions"),  # type: ignore[misc]
            code=code,
            param="prompt",
            within_s=within_s,
        )
        start = chat("x" * length)
        refused_grpc(lambda start=start: doors.generate(start), reason=code, within_s=within_s)  # type: ignore[misc]
    refused_grpc(lambda: doors.generate(pb.Start(text="x" * 5000)), reason=code, field="text", within_s=QUICK_S)
    many = pb.Start(tokens=pb.TokenIds(ids=[5] * 5000))
    refused_grpc(lambda: doors.generate(many), reason=code, field="tokens.ids", within_s=QUICK_S)
