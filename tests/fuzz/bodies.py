"""HTTP requests: JSON that is nearly right, and bytes that are nearly HTTP."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from hypothesis import strategies as st

from bridge_setup import MODEL, ask
from fake_service import USER_KEY
from fuzz.http_door import check, running_bridge, send
from fuzz.mutations import mutated, mutated_json
from fuzz.target import property_target
from spyglass_bridge.routes.table import ROUTES

_PICTURE = "data:image/png;base64,iVBORw0KGgo="
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}
_PARTS = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": _PICTURE, "detail": "low"}}]
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": _PARTS},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "content": "this", "tool_call_id": "1"},
]
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
_VALID = [
    ask(),
    ask(messages=_TALK, tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, n=2),
    ask(
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        logprobs=True,
        top_logprobs=2,
    ),
    ask(temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, seed=1, stop=["a", "b"], logit_bias={"5": 1.5}, max_tokens=5),
    ask(response_format=_SCHEMA, user="me", metadata={"a": "b"}, prediction={"type": "content", "content": "x"}),
    {"model": MODEL, "prompt": ["Once", "upon"], "echo": True, "max_tokens": 3, "stream": False},
    {"model": MODEL, "prompt": [1, 2, 3], "logprobs": 1, "stream": True},
    {"input": "Once", "max_new_tokens": 3, "stop": ["x"], "num_responses": 1, "stream": True},
    {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"width": 1, "height": 2}}]}],
    },
    {"model": MODEL, "tokens": [1, 2, 3]},
]
_BYTES = [json.dumps(valid).encode() for valid in _VALID]
_PATHS = sorted({path for route in ROUTES for path in route.paths})
_names = st.sampled_from([MODEL, "", ".", "..", "a b", "é", "\x00", "%", "%2e%2e", "<script>", "x" * 300]) | st.text(
    max_size=6
)
_paths = st.builds(
    lambda path, name: (
        path.replace("{model}", quote(name, safe="/")).replace("{variant}", quote(name)).replace("{file}", quote(name))
    ),
    st.sampled_from(_PATHS),
    _names,
)
_queries = st.lists(
    st.tuples(
        st.sampled_from(["since", "until", "model", "group_by", "records", "a"]),
        _names | st.from_regex(r"[0-9T:Z-]{1,12}", fullmatch=True),
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={quote(value)}" for name, value in pairs))
_jsons = st.one_of(
    mutated_json(_VALID).map(lambda value: json.dumps(value).encode()),
    mutated(_BYTES),
    st.binary(max_size=40),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 5000, b'{"model": "\\ud800"}', b"1" * 5000, b'{"a": 1, "a": 2}']),
)
_types = st.sampled_from(
    ["application/json"] * 8 + ["application/json; charset=utf-16", "text/plain", "multipart/form-data", "é"]
)
_more = st.sampled_from(
    [
        "",
        "",
        "",
        "",
        "Idempotency-Key: a\r\n",
        "X-Request-Id: <\xff>\r\n",
        "Content-Encoding: gzip\r\n",
        "Expect: 100-continue\r\n",
        "Accept-Encoding: gzip\r\n",
        "Origin: http://evil\r\n",
    ]
)


def _request(method: str, path: str, query: str, kind: str, more: str, body: bytes) -> bytes:
    target = f"{path}?{query}" if query else path
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: bridge\r\nAuthorization: Bearer {USER_KEY}\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode("latin-1") + body


_POSTS = sorted({path for route in ROUTES for path in route.paths if route.method == "post"})
_posts = st.builds(
    _request,
    st.just("POST"),
    st.sampled_from(_POSTS).map(lambda path: path.replace("{model}", MODEL)),
    st.just(""),
    _types,
    _more,
    _jsons,
)
_gets = st.builds(
    _request, st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]), _paths, _queries, _types, _more, st.just(b"")
)
_CHUNKED = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: bridge\r\nAuthorization: Bearer {USER_KEY}\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode() + b"%x;a=b\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(_BYTES[0]), _BYTES[0])
_WHOLE = [
    _CHUNKED,
    *(_request("POST", "/v1/chat/completions", "", "application/json", "", body) for body in _BYTES[:3]),
    _request("GET", "/v1/models", "", "text/plain", "", b""),
    _request("GET", "/health", "", "text/plain", "Transfer-Encoding: chunked\r\n", b""),
    b"GET / HTTP/1.0\r\n\r\n",
]
_whole = (_posts | _posts | _gets).map(lambda data: (data, True))
_damaged = (mutated(_WHOLE) | st.binary(max_size=60)).map(lambda data: (data, False))
_requests = _whole | _whole | _damaged
"""Requests, and whether each is surely whole."""


@contextmanager
def _opened() -> Iterator[Callable[[tuple[bytes, bool]], str]]:
    with running_bridge() as bridge:
        good = _request("POST", "/v1/chat/completions", "", "application/json", "", _BYTES[0])

        def judge(given: tuple[bytes, bool]) -> str:
            request, is_whole = given
            answer = send(bridge.port, request, is_whole=is_whole)
            if answer is None:
                assert not is_whole, "there is no answer"
                after = send(bridge.port, good)
                assert after is not None
                assert after.status == 200
                return "no answer"
            return check(answer, request.decode("latin-1"))

        yield judge


BODIES = property_target("bodies", _requests, _opened, batch_size=2000, smoke_size=200)
