"""A47: whatever a caller sends, each line of the log is the program's own, and no terminal obeys it."""

import json
import re
from typing import Any

import grpc
import httpx
import pytest

from contract.doors import CHAT, Doors, chat_body
from contract.test_http import exchange
from fakes import auth, chat
from raw_http import request_head
from spyglass.v1 import options_pb2
from stack import Stack

FORGED = "2026-01-01 00:00:00,000 INFO server: generation ended request_id=forged"
EVIL = f"x\n{FORGED}\r\n{FORGED}\x1b[2J\x1b]0;owned\x07\x9b31m\u2028{FORGED}\u2029\u202etxt\x85{FORGED}"
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (server|engine|bridge|rank \d+): |    |spyglass: ")
_GRPC_LINE = re.compile(r"[EWI]\d{4} |WARNING: All log messages before absl")


def log_since(stack: Stack, offset: int) -> str:
    with stack.log_file.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8")


def assert_own_lines(text: str) -> None:
    for line in text.split("\n")[:-1]:
        assert _LINE.match(line) or _GRPC_LINE.match(line), line
        assert line.isprintable(), line
        assert not line.startswith("2026-01-01"), line


def test_a47_over_http(stack: Stack, doors: Doors) -> None:
    offset = stack.log_file.stat().st_size
    quoted = "".join(f"%{byte:02x}" for byte in EVIL.encode())
    key = f"Bearer {stack.key}"
    for path in (f"/v1/models/{quoted}", f"/{quoted}", f"/v1/inference/{quoted}", f"/page/{quoted}"):
        doors.request("GET", path)
    ids = ("a\tb", "a" * 5000, "\x1b[31m", "é", "../../x", '{"request_id": 1}')
    for name in ("X-Request-Id", "Idempotency-Key", "User-Agent", "Traceparent", "X-Forwarded-For", "Host", "Origin"):
        for value in ids:
            body = json.dumps(chat_body()).encode()
            head = request_head(CHAT, Authorization=key, Content_Length=len(body), Content_Type="application/json")
            head = head[:-2] + f"{name}: {value}\r\n\r\n".encode()
            answer = exchange(stack, head + body, only_first=True)
            doors.num_admitted += answer.startswith(b"HTTP/1.1 200 ")
    exchange(stack, f"G\x1bT /x{FORGED} HTTP/1.1\r\n\r\n".encode())
    exchange(stack, b"GET /" + FORGED.encode() + b"\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n")
    exchange(stack, b"\x1b]0;owned\x07\r\n" + FORGED.encode() + b"\r\n\r\n")
    for fields in (
        {"model": EVIL},
        {"user": EVIL},
        {"messages": [{"role": EVIL, "content": EVIL}]},
        {"stop": [EVIL]},
        {EVIL: 1},
        {"response_format": {"type": "regex", "regex": f"({EVIL}"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": EVIL}}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": EVIL}}]}]},
    ):
        doors.post(json.dumps(chat_body() | fields).encode())
    text = log_since(stack, offset)
    assert text.count("request ended") > 20
    assert_own_lines(text)


def test_a47_over_grpc(stack: Stack, doors: Doors) -> None:
    offset = stack.log_file.stat().st_size
    stopping = options_pb2.Stopping(max_tokens=1)
    for start in (
        chat("Hi", request_id=EVIL, stopping=stopping),
        chat("Hi", model=EVIL, stopping=stopping),
        chat("Hi", idempotency_key=EVIL[:100], stopping=stopping),
        chat("Hi", traceparent=EVIL, stopping=stopping),
        chat(EVIL, stopping=stopping),
    ):
        doors.generate(start)
    for method in (EVIL, "Generate"):
        call: Any = doors.channel.unary_unary(f"/spyglass.v1.InferenceService/{method}")
        with pytest.raises(grpc.RpcError):
            call(b"\xff" * 20, metadata=auth("bad\\n" + FORGED), timeout=10)
    assert_own_lines(log_since(stack, offset))


def test_a47_the_callers_id_is_taken_only_as_it_may_stand_in_a_line(stack: Stack, doors: Doors) -> None:
    for given in ("ok-1.2:3_4", "with space", "a" * 129, "é", '"quoted"', "a=b"):
        with httpx.Client(base_url=stack.http) as http:
            response = http.get("/health", headers=[(b"x-request-id", given.encode())])
        taken = response.headers["x-request-id"]
        assert (taken == given) is (given == "ok-1.2:3_4")
        assert re.fullmatch(r"[\w.:-]{1,128}", taken)
