"""One trace from the caller through bridge and server into the engine, as a collector gets it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from PIL import Image

from both import run_both
from bridge_setup import CHAT, MODEL, ask, ask_about
from fakes import FakeLoader, chat, run_test_server
from observed import Collector, attributes, run_collector
from pictures import data_uri

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PHASES = ["admission", "upload", "prepare", "queue", "encode", "prefill", "decode"]


async def collect(
    checkpoint: Path, data_dir: Path, *bodies: Mapping[str, Any], traceparent: str
) -> tuple[Collector, list[Any]]:
    """Asks a bridge with a server behind it; what both have sent when they have ended, and the answers."""
    with run_collector() as collector:
        settings = {"otlp_endpoint": collector.endpoint}
        headers = {"traceparent": traceparent}
        loader = FakeLoader(step_s=0.002)
        async with run_both(checkpoint, data_dir, loader, server=settings, bridge=settings, headers=headers) as both:
            answers = []
            for body in bodies:
                async with both.http.post(CHAT, json=body) as response:
                    answers.append(await response.json(content_type=None) if response.status == 200 else None)
        return collector, answers


def of_trace(collector: Collector, trace: str = TRACE) -> list[tuple[str, Span]]:
    return [(service, span) for service, span in collector.spans if span.trace_id.hex() == trace]


async def test_one_trace_of_a_chat_about_a_picture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    large = ask_about(data_uri(Image.effect_noise((900, 700), 90)))  # announced, so that it is uploaded
    collector, [answer] = await collect(
        tiny_checkpoint, tmp_path, ask(messages=large, max_tokens=6), traceparent=f"00-{TRACE}-{CALLER}-01"
    )
    spans = of_trace(collector)
    [(bridge, request)] = [one for one in spans if one[1].name == f"POST {CHAT}"]
    [(server, generation)] = [one for one in spans if one[1].name == f"chat {MODEL}"]
    assert (bridge, server) == ("spyglass-bridge", "spyglass-server")
    assert request.parent_span_id.hex() == CALLER
    assert generation.parent_span_id == request.span_id
    phases = sorted((span for _, span in spans if span.parent_span_id == generation.span_id), key=_start)
    assert [span.name for span in phases] == PHASES
    assert len(spans) == len(PHASES) + 2
    edges = [generation.start_time_unix_nano, *(edge for span in phases for edge in (_start(span), _end(span)))]
    assert edges == sorted(edges)
    assert abs(_end(phases[-1]) - _end(generation)) < 1000
    assert _start(request) < _start(generation) < _end(generation) < _end(request)
    known, usage = attributes(generation), answer["usage"]
    assert known["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert known["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 6
    assert known["gen_ai.usage.cache_read.input_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert known["gen_ai.request.model"] == MODEL
    assert known["gen_ai.response.finish_reasons"] == ["length"]
    assert attributes(request)["http.response.status_code"] == 200
    for name in ("gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"):
        [point] = collector.measurements[name].histogram.data_points
        assert (point.count, attributes(point)["gen_ai.request.model"]) == (1, MODEL)


async def test_errors_are_in_the_trace_and_no_content_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bodies = [
        ask(model="secret-model"),
        ask(max_tokens=4, user="secret-user"),
        ask(messages=[{"role": "user", "content": "a secret"}]),
    ]
    collector, _ = await collect(tiny_checkpoint, tmp_path, *bodies, traceparent=f"00-{TRACE}-{CALLER}-01")
    spans = [span for _, span in of_trace(collector)]
    refused = next(span for span in spans if attributes(span).get("error.type") == "model_not_found")
    assert refused.name == "chat"
    assert [attributes(span)["http.response.status_code"] for span in spans if span.name.startswith("POST")].count(
        404
    ) == 1
    assert not any(b"secret" in span.SerializeToString() for span in spans)


async def test_what_the_caller_does_not_sample_is_not_sent(tiny_checkpoint: Path, tmp_path: Path) -> None:
    collector, [answer] = await collect(
        tiny_checkpoint, tmp_path, ask(max_tokens=4), traceparent=f"00-{TRACE}-{CALLER}-00"
    )
    assert answer["usage"]["completion_tokens"] == 4
    assert not of_trace(collector)


async def test_a_malformed_header_begins_a_trace_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    collector, [answer] = await collect(tiny_checkpoint, tmp_path, ask(max_tokens=4), traceparent="00-x-y\x80-01")
    assert answer is not None
    [request] = [span for _, span in collector.spans if span.name == f"POST {CHAT}"]
    assert not request.parent_span_id
    assert len(of_trace(collector, request.trace_id.hex())) == 2 + len(PHASES) - 1  # there is nothing to encode


async def test_a_grpc_caller_is_the_parent(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with run_collector() as collector:
        async with run_test_server(tiny_checkpoint, tmp_path, FakeLoader(), otlp_endpoint=collector.endpoint) as server:
            stream = server.open_stream()
            for number, traceparent in enumerate((f"00-{TRACE}-{CALLER}-01", "", "nonsense"), 1):
                await stream.start(number, chat("hi", traceparent=traceparent))
            async with asyncio.timeout(20):
                await stream.finish()
    [generation] = [span for _, span in of_trace(collector) if span.name.startswith("chat ")]
    assert generation.parent_span_id.hex() == CALLER
    assert len({span.trace_id for _, span in collector.spans}) == 3


def _start(span: Span) -> int:
    return span.start_time_unix_nano


def _end(span: Span) -> int:
    return span.end_time_unix_nano
