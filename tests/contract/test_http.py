"""A32 to A40: keys, routes, and HTTP as no good client speaks it."""

import gzip
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from contract.doors import CHAT, JSON, Doors, assert_clean, assert_error, chat_body, refused
from raw_http import request_head
from spyglass.v1 import inference_pb2 as pb
from stack import Stack

MAX_BODY_BYTES = 64 << 20
DRIP_S = 30.0
OPEN = ("/health", "/ready", "/docs", "/openapi.json")
GENERATIONS = (CHAT, "/v1/openai/chat/completions", "/v1/completions", "/v1/inference/tiny", "/tokenize", "/detokenize")


def exchange(stack: Stack, data: bytes, *, only_first: bool = False) -> bytes:
    """Sends bytes on a connection of its own, and reads one answer or all until the other side closes it."""
    answer = b""
    with connected(stack) as connection:
        connection.sendall(data)
        try:
            while not (only_first and _is_whole(answer)) and (piece := connection.recv(1 << 16)):
                answer += piece
        except TimeoutError:
            answer += b"(still open)"
        except ConnectionResetError:
            pass
    assert_clean(answer.decode(errors="replace"))
    return answer


def connected(stack: Stack) -> socket.socket:
    host, _, port = stack.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def _is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def statuses(answer: bytes) -> list[int]:
    """Those of all answers on a connection."""
    return [int(line.split(b" ")[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]


# --- A38 takes half a minute, in which the other cases are tried -------------------------------------


@dataclass
class Drip:
    """A connection on which a byte a second is sent, after a beginning; None sends nothing more."""

    name: str
    beginning: bytes
    byte: bytes | None = b"x"
    lasted_s: float | None = None
    answer: bytes = b""

    def run(self, stack: Stack) -> None:
        with connected(stack) as connection:
            began = time.monotonic()
            connection.sendall(self.beginning)
            while time.monotonic() < began + DRIP_S + 5:
                if select.select([connection], [], [], 1.0)[0]:
                    try:
                        piece = connection.recv(1 << 16)
                    except ConnectionResetError:
                        piece = b""
                    self.answer += piece
                    if not piece:
                        self.lasted_s = time.monotonic() - began
                        return
                elif self.byte:
                    try:
                        connection.sendall(self.byte)
                    except (BrokenPipeError, ConnectionResetError):
                        self.lasted_s = time.monotonic() - began
                        return


@pytest.fixture(scope="module", autouse=True)
def drips(stack: Stack) -> Iterator[list[tuple[Drip, threading.Thread]]]:
    """They begin with the first test of this file; `test_a38_…`, the last one, looks at how they ended."""
    known = {"Authorization": f"Bearer {stack.key}", "Content_Type": "application/json"}
    drips = [
        Drip("nothing at all", b"", None),
        Drip("request line", b"P"),
        Drip("headers", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Long: "),
        Drip("blank lines", b"\r\n", b"\n"),
        Drip("headers that end", b"GET /health HTTP/1.1\r\nHost: x\r\n", None),
        Drip("body", request_head(CHAT, **known, Content_Length=1000) + b"{"),
        Drip("body that does not begin", request_head(CHAT, **known, Content_Length=1000), None),
        Drip("chunks", request_head(CHAT, **known, Transfer_Encoding="chunked"), b"1\r\nx\r\n"),
        Drip("body of a stranger", request_head(CHAT, Content_Type="application/json", Content_Length=1000) + b"{"),
        Drip("second request", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ]
    threads = [threading.Thread(target=drip.run, args=(stack,), name=drip.name) for drip in drips]
    for thread in threads:
        thread.start()
    yield list(zip(drips, threads, strict=True))
    for thread in threads:
        thread.join()


# --- keys -----------------------------------------------------------------------------------------

BAD_KEYS: list[str | None] = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    "Bearer  {key}",
    "Bearer {key} x",
    "Bearer\t{key}",
    "Bearer {key}\x00",
    "Bearer {key}é",
    "bearer: {key}",
    "Basic {key}",
    "{key}",
    "Bearer ' OR 1=1--",
    'Bearer "{key}"',
    "Bearer {key},{key}",
    "Bearer " + "x" * 5000,
    "Bearer ../../etc/passwd",
    "Bearer *",
]


def test_a32_bad_keys_get_the_same_answer(stack: Stack, doors: Doors) -> None:
    body = json.dumps(chat_body())
    answers = set[bytes]()
    for key in BAD_KEYS:
        line = "" if key is None else f"Authorization: {key.format(key=stack.key)}\r\n"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{line}Content-Type: application/json\r\n"
        began = time.monotonic()
        answer = exchange(stack, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(), only_first=True)
        assert time.monotonic() - began < 1, key
        if key is not None and "\x00" in key:  # no header at all
            assert statuses(answer) == [400]
            continue
        assert statuses(answer) == [401], (key, answer)
        answers.add(answer.partition(b"\r\n\r\n")[2])
    [answer] = answers
    assert json.loads(answer)["error"]["code"] == "invalid_api_key"


def test_a32_two_keys_are_none(stack: Stack, doors: Doors) -> None:
    body = json.dumps(chat_body()).encode()
    headers = [("Authorization", f"Bearer {stack.key}"), ("Authorization", "Bearer x"), *JSON.items()]
    for order in (headers, headers[1::-1] + headers[2:]):
        assert httpx.post(stack.http + CHAT, content=body, headers=order).status_code == 401


def test_a32_bad_keys_over_grpc(stack: Stack, doors: Doors) -> None:
    seen = set[str]()
    for key in BAD_KEYS:
        if key and not (key.isascii() and key.isprintable()):
            continue  # gRPC's own client sends none such
        metadata = () if key is None else (("authorization", key.format(key=stack.key + "x")),)
        with pytest.raises(grpc.RpcError) as refusal:
            doors.stub.GetUsage(pb.GetUsageRequest(), metadata=metadata)
        error: Any = refusal.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, key
        seen.add(error.details())
    assert len(seen) == 1


# --- ways around the key ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("evil/?", "/v1/chat/completions"),
        ("evil/health?", "/v1/chat/completions"),
        ("localhost/health#", "/v1/models"),
        ("", "/v1/models"),
        ("x", "//v1/chat/completions"),
        ("x", "///v1/models"),
        ("x", "/v1/%63hat/completions"),
        ("x", "/v1/../v1/chat/completions"),
        ("x", "/health/../v1/models"),
        ("x", "/docs/..%2fv1/models"),
        ("x", "/health/%2e%2e/v1/models"),
        ("x", "/health;/v1/models"),
        ("x", "/v1/models/"),
        ("x", "/v1/./models"),
        ("x", "/V1/models"),
        ("x", "/health/v1/models"),
        ("x", "/v1/models?path=/health"),
        ("x", "/v1/models#/health"),
        ("x", "/v1/models%00/health"),
        ("x", "/v1/models\\..\\health"),
        ("x", "http://evil/v1/models"),
        ("x", "http://127.0.0.1/health/../v1/models"),
        ("x", "*"),
        ("x", "v1/models"),
        ("x", "/%2fv1/models"),
        ("x", "/v1%2fmodels"),
        ("x", "/v1/models/%2e%2e/%2e%2e/health"),
        ("x", "/health%20"),
    ],
)
def test_a33_ways_around_the_key(stack: Stack, doors: Doors, host: str, path: str) -> None:
    for method in ("POST", "GET"):
        body = json.dumps(chat_body())
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        answer = exchange(stack, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        [status] = statuses(answer)
        assert status in (400, 401, 404), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-For", "X-HTTP-Method-Override"])
def test_a33_headers_around_the_key(stack: Stack, doors: Doors, header: str) -> None:
    for value in ("/health", "127.0.0.1", "GET"):
        assert httpx.get(f"{stack.http}/v1/models", headers={header: value}).status_code == 401


def test_a34_every_route_without_a_key(stack: Stack, doors: Doors) -> None:
    paths = httpx.get(f"{stack.http}/openapi.json").raise_for_status().json()["paths"]
    assert set(GENERATIONS) <= {path.replace("{model}", "tiny") for path in paths}
    with httpx.Client(base_url=stack.http) as http:
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
                response = http.request(method, path.replace("{model}", "tiny").replace("{variant}", "input"))
                allowed = (200, 405) if path in OPEN else (401,)
                assert response.status_code in allowed, (method, path, response.status_code)
        for path in (*OPEN, "/", "/page/main.js"):
            assert http.get(path).status_code == 200, path
        # The page is open, and tells nothing of a private model.
        assert http.get("/page/about.json").json()["model"] is None
        assert "tiny" not in http.get("/").text
        for path in ("/page/none.js", "/page/..%2fapp.py", "/page/%2e%2e/v1/models", "/page/%2fetc%2fpasswd"):
            assert http.get(path).status_code in (401, 404), path
        for path in (
            "/metrics",
            "/debug",
            "/admin",
            "/v1",
            "/v1/files",
            "/static/../etc/passwd",
            "/.env",
            "/favicon.ico",
        ):
            assert http.get(path).status_code in (401, 404), path


def test_a34_every_method_of_grpc_without_a_key(doors: Doors) -> None:
    service = pb.DESCRIPTOR.services_by_name["InferenceService"]
    for method in service.methods:
        call: Any = doors.channel.stream_stream(f"/{service.full_name}/{method.name}")
        with pytest.raises(grpc.RpcError) as refusal:
            list(call(iter((b"",))))
        error: Any = refusal.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, method.name


# --- headers and bodies ----------------------------------------------------------------------------


def test_a35_large_and_many_headers(stack: Stack, doors: Doors) -> None:
    key = f"Bearer {stack.key}"
    for headers in (
        {"X": "y" * 100_000},
        {f"X-{i}": "y" * 1000 for i in range(100)},
        {f"X-{i}": "y" * 7000 for i in range(10)},
        {"X" * 100_000: "y"},
        {f"X-{i}": "1" for i in range(200)},
        {"Cookie": "a=b; " * 20_000},
    ):
        for more in ({"Authorization": key}, {}):
            head = request_head(CHAT, **headers, **more, Content_Length=0)
            [status] = statuses(exchange(stack, head, only_first=True))
            assert status in (400, 431), status
    [status] = statuses(exchange(stack, b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert status in (400, 414)


def head_of(stack: Stack, **headers: object) -> bytes:
    return request_head(CHAT, Authorization=f"Bearer {stack.key}", Content_Type="application/json", **headers)


def test_a36_a_body_that_declares_too_much(stack: Stack, doors: Doors) -> None:
    for length in (MAX_BODY_BYTES + 1, 10**12, 2**63):
        began = time.monotonic()
        answer = exchange(stack, head_of(stack, Content_Length=length), only_first=True)  # none of it is sent
        assert statuses(answer) in ([413], [400]), answer
        assert time.monotonic() - began < 1


def test_a36_chunks_without_an_end(stack: Stack, doors: Doors) -> None:
    """The answer comes when the cap is reached, and not at an end that the caller chooses."""
    piece = bytes(1 << 18)
    sent = 0
    with connected(stack) as connection:
        connection.sendall(head_of(stack, Transfer_Encoding="chunked"))
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            assert sent < MAX_BODY_BYTES * 3 // 2
        assert statuses(connection.recv(1 << 16)) == [413]
    assert sent > MAX_BODY_BYTES


def test_a36_gzip_bombs(doors: Doors) -> None:
    """413 as soon as the cap is passed, whatever would come behind; the oracle looks at the memory."""
    headers = JSON | {"Content-Encoding": "gzip"}
    for size in (MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES):
        bomb = gzip.compress(bytes(size), 9)
        refused(lambda bomb=bomb: doors.post(bomb, headers=headers), 413, within_s=2.0)  # type: ignore[misc]
    inner = gzip.compress(gzip.compress(bytes(4 * MAX_BODY_BYTES)))  # is unpacked once
    refused(lambda: doors.post(inner, headers=headers), 400)
    body = json.dumps(chat_body()).encode()
    assert doors.post(gzip.compress(body), headers=headers).status == 200
    for broken in (gzip.compress(body)[:-5], gzip.compress(body) + b"x", body):
        refused(lambda broken=broken: doors.post(broken, headers=headers), 400, code="invalid_content_encoding")  # type: ignore[misc]


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "x-gzip", "gzip, gzip", "identity, gzip"])
def test_a36_compressed_bodies(doors: Doors, encoding: str) -> None:
    bomb = gzip.compress(bytes(64 << 20), 1)
    refused(lambda: doors.post(bomb, headers=JSON | {"Content-Encoding": encoding}), 415)


@pytest.mark.parametrize("path", GENERATIONS)
def test_a36_other_types(doors: Doors, path: str) -> None:
    body = json.dumps(chat_body()).encode()
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        refused(lambda kind=kind: doors.post(body, path, {"Content-Type": kind}), (400, 415))  # type: ignore[misc]


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 0"],
        ["Content-Length: 5", "Transfer-Encoding: identity"],
        ["Content-Length: 5", "transfer-encoding: CHUNKED"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5, 6"],
        ["Content-Length: +5"],
        ["Content-Length: -5"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5 5"],
        ["Content-Length: ５"],
        ["Content-Length:"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: \x0bchunked"],
        ["X: y\nTransfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", " Transfer-Encoding: chunked"],
        ["Content-Length: 5\rTransfer-Encoding: chunked"],
    ],
    ids=" & ".join,
)
def test_a37_a_length_and_chunks_together(stack: Stack, doors: Doors, lines: list[str]) -> None:
    """400 and closed: whatever stands behind is no request."""
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {stack.key}", *lines]
    for body in (b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b""):
        answer = exchange(stack, "\r\n".join([*head, "", ""]).encode() + body + SMUGGLED)
        assert not answer.endswith(b"(still open)"), answer
        found = statuses(answer)
        assert len(found) == 1, answer
        assert found[0] in (400, 415), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "chunk",
    [
        b"g\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"ffffffffffffffffff\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    ],
    ids=lambda chunk: chunk[:6].decode(),
)
def test_a37_bad_chunks(stack: Stack, doors: Doors, chunk: bytes) -> None:
    answer = exchange(stack, head_of(stack, Transfer_Encoding="chunked") + chunk, only_first=True)
    assert statuses(answer) == [400], answer


# --- JSON ------------------------------------------------------------------------------------------

PLAIN = b'{"model":"tiny","max_tokens":2,"messages":[{"role":"user","content":"Hi"}],"prompt":"Hi","input":"Hi"}'
HOSTILE = {
    "empty": b"",
    "a word": b"null",
    "a list": b"[1]",
    "open lists": b"[" * 100_000,
    "open lists in a field": b'{"model":"tiny","messages":' + b"[" * 100_000,
    "open objects": b'{"a":' * 100_000,
    "closed lists": b"[" * 100_000 + b"]" * 100_000,
    "a lone surrogate": PLAIN.replace(b"Hi", b"\\ud800"),
    "a lone low surrogate": PLAIN.replace(b"Hi", b"\\udc00x"),
    "a surrogate's bytes": PLAIN.replace(b"Hi", b"\xed\xa0\x80"),
    "bad bytes": PLAIN.replace(b"Hi", b"\xff"),
    "another encoding": '{"model":"tiny"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "a comment": b"/* x */" + PLAIN,
    "more behind": PLAIN + b"x",
    "two": PLAIN + PLAIN,
    "a trailing comma": PLAIN[:-1] + b",}",
    "single quotes": PLAIN.replace(b'"', b"'"),
    "a bare NUL": PLAIN.replace(b"Hi", b"\0"),
    "a bare line break": PLAIN.replace(b"Hi", b"\n"),
    "proto": b'{"__proto__":{"x":1},"model":"tiny"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a39_hostile_json(doors: Doors, kind: str) -> None:
    for path in GENERATIONS:
        refused(lambda path=path: doors.post(HOSTILE[kind], path))  # type: ignore[misc]


def test_a39_nul_and_duplicate_keys(doors: Doors) -> None:
    """Documented: NUL is a character, and the last of duplicate keys counts."""
    assert doors.post(json.dumps(chat_body("a\0b")).encode()).status == 200
    body = b'{"model":"none",' + json.dumps(chat_body()).encode()[1:]
    assert doors.post(body).status == 200
    body = json.dumps(chat_body()).encode()[:-1] + b',"model":"none"}'
    assert_error(doors.post(body), 404, "model_not_found")
    assert_error(doors.post(json.dumps(chat_body(model="a\0b")).encode()), 404)
    for name in ("\0", "x\ud83d", "😀" * 300):
        assert_error(doors.post(json.dumps(chat_body(**{name: 1})).encode()))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "file://"])
def test_a40_a_foreign_origin(stack: Stack, doors: Doors, origin: str) -> None:
    headers = {"Origin": origin}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    replies = [
        doors.post(json.dumps(chat_body()).encode(), headers=JSON | headers),
        doors.post(json.dumps(chat_body(stream=True)).encode(), headers=JSON | headers),
        doors.request("OPTIONS", CHAT, headers=headers | preflight),
        doors.request("GET", "/v1/models", headers=headers),
        doors.request("GET", "/docs", headers=headers),
        doors.request("GET", "/health", headers=headers),
    ]
    for reply in replies:
        assert not [name for name in reply.headers if name.lower().startswith("access-control-")]


@pytest.mark.slow
def test_a38_headers_and_bodies_that_drip(doors: Doors, drips: list[tuple[Drip, threading.Thread]]) -> None:
    """The last of this file: the connections of `drips` have been there since the first."""
    for drip, thread in drips:
        thread.join()
        assert drip.lasted_s is not None, f"{drip.name} is still open: {drip.answer!r}"
        assert drip.lasted_s < DRIP_S, f"{drip.name} was closed after {drip.lasted_s:.1f} s"
        assert statuses(drip.answer) in ([], [400], [408], [401], [200]), drip.answer
