"""A27 to A31: schemas and grammars that cost much, or lead somewhere else."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from contract.doors import Doors, Reply, assert_error, quick, refused, refused_grpc
from contract.listeners import Listener, body, listen
from fakes import chat
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import options_pb2
from spyglass_client import AsyncClient

COSTLY_S = 2.0
NUM_STREAMS = 8


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def grpc_format(**kind: Any) -> pb.Start:
    stopping = options_pb2.Stopping(max_tokens=64)
    return chat("Hi", stopping=stopping, format=options_pb2.OutputFormat(**kind))


def grpc_schema(text: str) -> pb.Start:
    return grpc_format(json_schema=options_pb2.JsonSchemaFormat(name="x", schema_json=text))


def refuse(doors: Doors, schema: Any) -> None:
    """The schema is refused at both doors, and as the parameters of a tool that must be called."""
    text = json.dumps(schema)
    refused(lambda: doors.chat(response_format=schema_format(schema)))
    refused_grpc(lambda: doors.generate(grpc_schema(text)), field="format.json_schema.schema_json")
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    refused(lambda: doors.chat(tools=[tool], tool_choice="required"))


def refused_or_answered(doors: Doors, **fields: Any) -> Reply:
    """400, or an answer, in two seconds either way."""

    def ask() -> Reply:
        reply = doors.chat(max_tokens=64, **fields)
        # what shows only while the answer is written was admitted before
        doors.num_admitted += reply.status == 400 and "the answer cannot continue" in reply.text
        return reply

    reply = quick(ask, COSTLY_S)
    if reply.status != 200:
        assert_error(reply)
    return reply


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+b",
        "(.{0,9999}){0,9999}",
        "(a|a)*b",
        "(a|aa)+$",
        "(.*)*x",
        "((a*)*)*b",
        "(x+x+)+y",
        ".{1000000}",
        "a{1000000000}",
        "((a{1,100}){1,100}){1,100}",
        "(?:x{0,1000}){0,1000}",
        r"(\w+\s?)*!",
        r"\p{L}{1,500}",
        "(a?){500}a{500}",
        ".*".join("abcdefghij"),
        "(?i)" + "(a|b|c)*" * 200,
        "[" + "a-z" * 50_000 + "]",
        "|".join(f"word{i}" for i in range(20_000)),
        "a" * 300_000,
        "(?=a)b",
        r"(a)\1",
        "(",
        "[",
        "*",
        "\\",
        "a{2,1}",
    ],
    ids=lambda regex: regex[:30],
)
def test_a27_expensive_regular_expressions(doors: Doors, regex: str) -> None:
    refused_or_answered(doors, response_format={"type": "regex", "regex": regex})
    refused_or_answered(doors, response_format=schema_format({"type": "string", "pattern": regex}))
    outcome = quick(lambda: doors.generate(grpc_format(regex=regex)), COSTLY_S)
    assert outcome.code in ("OK", "INVALID_ARGUMENT"), outcome


def deep(inner: Any, depth: int, wrap: Any) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


DEPTH = 30_000
WRAPS = {
    "properties": ('{"type":"object","properties":{"a":', "}}"),
    "items": ('{"type":"array","items":', "}"),
    "anyOf": ('{"anyOf":[', "]}"),
    "not": ('{"not":', "}"),
    "enum": ('{"enum":[', "]}"),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a28_deep_nesting(doors: Doors, wrap: str) -> None:
    left, right = WRAPS[wrap]
    schema = left * DEPTH + '{"type":"string"}' + right * DEPTH
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})
    whole = f'{body[:-1]}, "response_format": {{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}}}'
    refused(lambda: doors.post(whole.encode()))
    refused_grpc(lambda: doors.generate(grpc_schema(schema)))
    tool = f'{body[:-1]}, "tools": [{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]}}'
    refused(lambda: doors.post(tool.encode()))


@pytest.mark.parametrize(
    "text", ["(" * DEPTH + "a" + ")" * DEPTH, "[" * DEPTH + "a" + "]" * DEPTH, "(?:" * DEPTH + "a" + ")*" * DEPTH]
)
def test_a28_deep_expressions_and_grammars(doors: Doors, text: str) -> None:
    refused(lambda: doors.chat(response_format={"type": "regex", "regex": text}))
    refused(lambda: doors.chat(response_format=schema_format({"type": "string", "pattern": text})))
    refused_grpc(lambda: doors.generate(grpc_format(regex=text)))
    quoted = text.replace("a", '"a"')
    refused_grpc(lambda: doors.generate(grpc_format(grammar=f"start: {quoted}")))


RECURSIVE: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a property": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "a required property": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "two": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a list": {"type": "array", "items": {"$ref": "#"}},
    "a choice": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "nowhere": {"$ref": "#/$defs/none"},
    "many": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
        | {"d60": {"type": "string"}},
    },
}


@pytest.mark.parametrize("kind", RECURSIVE)
def test_a29_references_to_itself(doors: Doors, kind: str) -> None:
    refused_or_answered(doors, response_format=schema_format(RECURSIVE[kind]))
    outcome = quick(lambda: doors.generate(grpc_schema(json.dumps(RECURSIVE[kind]))), COSTLY_S)
    assert outcome.code in ("OK", "INVALID_ARGUMENT"), outcome


@pytest.fixture
def target() -> Any:
    """Holds a schema that nobody may fetch."""
    with listen(schema=body(b'{"type": "string"}')) as listener:
        yield listener
        assert listener.num_connections == 0


@pytest.mark.parametrize(
    "reference",
    [
        "http://127.0.0.1:{port}/schema",
        "http://localhost:{port}/schema#/x",
        "//localhost:{port}/schema",
        "file:///etc/passwd",
        "https://json-schema.org/draft/2020-12/schema",
        "other.json",
        "/etc/passwd",
    ],
)
def test_a29_remote_references(doors: Doors, target: Listener, reference: str) -> None:
    url = reference.format(port=target.port)
    refuse(doors, {"$ref": url})
    refuse(doors, {"type": "object", "properties": {"a": {"$ref": url}}, "required": ["a"]})
    if url.startswith("http:"):
        refuse(doors, {"$id": url, "$ref": "other"})


_MALFORMED: list[Any] = [
    {"type": 5},
    {"properties": []},
    {"type": "string", "pattern": "("},
    {"$ref": 1},
    [],
    "x",
]


def test_a30_a_malformed_schema_beside_running_streams(doors: Doors) -> None:
    """Eight streams, two of them held to a schema, say what they say alone."""
    good = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shapes: list[dict[str, Any]] = [{"response_format": schema_format(good)}] * 2 + [{}] * (NUM_STREAMS - 2)

    def ask(number: int) -> str:
        reply = doors.chat(f"Tell me of {number}.", max_tokens=200, **shapes[number])
        assert reply.status == 200, reply
        return reply.content

    alone = [ask(number) for number in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        running = [pool.submit(ask, number) for number in range(NUM_STREAMS)]
        assert doors.chat(response_format=schema_format(good)).status == 200
        num_refused = 0
        while not all(each.done() for each in running) or not num_refused:
            for bad in _MALFORMED:
                assert_error(doors.chat(response_format=schema_format(bad)))
                num_refused += 1
        assert [each.result() for each in running] == alone
    for text in ("", "{", "null", "[]", '"x"', '{"type": "no"}', "\ud800".encode("utf-8", "surrogatepass").hex()):
        refused_grpc(lambda text=text: doors.generate(grpc_schema(text)))  # type: ignore[misc]
    for text in ("", "start", 'start: "a', "x: y", "start: start", "%import x"):
        refused_grpc(lambda text=text: doors.generate(grpc_format(grammar=text)))  # type: ignore[misc]


@pytest.mark.slow
async def test_a31_5000_schemas(doors: Doors) -> None:
    """Memory is flat: the oracle compares it with what it was before."""
    slots = asyncio.Semaphore(NUM_STREAMS)

    async def ask(client: AsyncClient, number: int) -> None:
        properties = {f"p{number}_{i}": {"type": "string", "maxLength": 5 + i} for i in range(2)}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        async with slots:
            await client.generate(text="x", json_schema=schema, max_tokens=1)

    async with AsyncClient(doors.stack.grpc, api_key=doors.key) as client:
        await asyncio.gather(*(ask(client, number) for number in range(5000)))
    doors.num_admitted += 5000
