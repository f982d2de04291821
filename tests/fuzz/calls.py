"""Calls of all methods with bytes at random: each ends soon, with a status that the protocol knows, and says nothing
of the server's inside."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from hypothesis import strategies as st

from checkpoints import byte_tokenizer, write_prompt_files
from fakes import BRIDGE_KEY, KEY, AllowsAll, FakeLoader, TestServer, auth, chat, run_test_server
from fuzz.background import Background, background
from fuzz.messages import messages
from fuzz.mutations import mutated
from fuzz.starts import valid_starts
from fuzz.target import property_target
from fuzz.waiting import PATIENCE_S, wait_until
from spyglass.v1 import admin_pb2, inference_pb2, options_pb2
from spyglass_common.data_dir import ADMIN_KEY_FILE

_UNARY = {
    name: method.input_type._concrete_class
    for service in ("InferenceService", "AdminService")
    for method in (inference_pb2 if service == "InferenceService" else admin_pb2)
    .DESCRIPTOR.services_by_name[service]
    .methods
    if (name := f"/{method.containing_service.full_name}/{method.name}") != "/spyglass.v1.InferenceService/Generate"
}
_GENERATE = "/spyglass.v1.InferenceService/Generate"
_OUR_OWN = re.compile(r'Traceback|File "|0x[0-9a-f]{6}|/tmp/|\.py\b|site-packages|object at')
"""What no answer may hold."""
_NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED}


@dataclass(frozen=True)
class _Call:
    method: str
    key: str
    data: tuple[bytes, ...]


def _requests(kind: Any) -> "st.SearchStrategy[bytes]":
    whole: st.SearchStrategy[bytes] = messages(kind).map(lambda message: message.SerializeToString())
    return whole | whole.flatmap(lambda data: mutated([data])) | st.binary(max_size=30)


_MAX_ID = 12
_CANCELS = [
    inference_pb2.GenerateRequest(id=number, cancel=inference_pb2.Cancel()).SerializeToString()
    for number in range(_MAX_ID + 1)
]
_ids = st.integers(0, _MAX_ID)
_starts = st.one_of(messages(inference_pb2.Start), st.sampled_from(valid_starts()))
_short = messages(inference_pb2.Start, stopping=st.just(options_pb2.Stopping(max_tokens=3)))
_generate_requests = st.one_of(
    st.builds(lambda number, start: inference_pb2.GenerateRequest(id=number, start=start), _ids, _starts | _short),
    st.builds(lambda number: inference_pb2.GenerateRequest(id=number, cancel=inference_pb2.Cancel()), _ids),
    st.builds(
        lambda number, chunk: inference_pb2.GenerateRequest(id=number, image_chunk=chunk),
        _ids,
        messages(inference_pb2.ImageChunk),
    ),
).map(lambda request: request.SerializeToString())
_streamed = st.lists(
    _generate_requests | _generate_requests | _generate_requests.flatmap(lambda data: mutated([data])), max_size=8
)
_keys = st.sampled_from([KEY, KEY, BRIDGE_KEY, "admin", "wrong"])
_unary = st.sampled_from(sorted(_UNARY)).flatmap(
    lambda method: st.builds(_Call, st.just(method), _keys, st.tuples(_requests(_UNARY[method])))
)
_admins = st.sampled_from([name for name in sorted(_UNARY) if "Admin" in name]).flatmap(
    lambda method: st.builds(_Call, st.just(method), st.just("admin"), st.tuples(_requests(_UNARY[method])))
)
_calls = _unary | _admins | st.builds(_Call, st.just(_GENERATE), _keys, _streamed.map(tuple))


class _Caller:
    """Calls one server, as everybody may.

    Not by gRPC's asyncio: there a call that the server has ended while it was written to has no status but its own.
    """

    def __init__(self, channel: grpc.Channel, admin_key: str) -> None:
        self._channel, self._admin_key = channel, admin_key

    def call(self, call: _Call) -> tuple[grpc.StatusCode, str, Sequence[inference_pb2.GenerateResponse]]:
        """Code and message of the status, and what a stream has said."""
        metadata = auth(self._admin_key if call.key == "admin" else call.key)
        frames: list[inference_pb2.GenerateResponse] = []
        try:
            if call.method == _GENERATE:
                # Pictures that nobody sends would be waited for.
                frames.extend(self._stream((*call.data, *_CANCELS), metadata))
            else:
                method: Any = self._channel.unary_unary(call.method)
                method(call.data[0], metadata=metadata, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            status: Any = error
            return status.code(), status.details() or "", frames
        return grpc.StatusCode.OK, "", frames

    def canary(self) -> str:
        """The answer to one question."""
        start = chat("canary", stopping=options_pb2.Stopping(max_tokens=8), sampling=options_pb2.Sampling(seed=1))
        request = inference_pb2.GenerateRequest(id=0, start=start)
        frames = self._stream((request.SerializeToString(),), auth())
        return "".join(event.delta.text for frame in frames for event in frame.events)

    def _stream(self, data: Sequence[bytes], metadata: Any) -> Iterator[inference_pb2.GenerateResponse]:
        method: Any = self._channel.stream_stream(
            _GENERATE, response_deserializer=inference_pb2.GenerateResponse.FromString
        )
        yield from method(iter(data), metadata=metadata, timeout=PATIENCE_S)


def _judge(call: _Call, code: grpc.StatusCode, message: str, frames: Sequence[inference_pb2.GenerateResponse]) -> str:
    assert code not in _NEVER, f"{code.name}: {message}"
    assert not _OUR_OWN.search(message), message
    finished: list[int] = []
    for event in (event for frame in frames for event in frame.events):
        assert event.id not in finished, "there is more after Finished"
        if event.HasField("finished"):
            finished.append(event.id)
            assert event.finished.error.code not in {never.value[0] for never in _NEVER}, event
            assert not _OUR_OWN.search(event.finished.error.message), event
    accepted = {event.id for frame in frames for event in frame.events}
    assert code is not grpc.StatusCode.OK or accepted == set(finished), "not everything has finished"
    return f"{call.method.rpartition('/')[2]} {code.name}"


@contextmanager
def running_server(loop: Background, loader: FakeLoader, **settings: Any) -> Iterator[tuple[TestServer, str]]:
    """A server with a fake engine, and an operator's key to it."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_prompt_files(Path(folder) / "model", byte_tokenizer())
        data_dir = Path(folder) / "data"
        with loop.entered(run_test_server(files, data_dir, loader, **settings)) as server:
            yield server, (data_dir / ADMIN_KEY_FILE).read_text().strip()


@contextmanager
def _opened() -> Iterator[Callable[[_Call], str]]:
    with (
        background() as loop,
        running_server(loop, FakeLoader(grammars=AllowsAll()), max_image_pixels=10_000) as (server, admin_key),
        grpc.insecure_channel(server.server.address) as channel,
    ):
        caller = _Caller(channel, admin_key)
        expected = caller.canary()
        assert expected

        def check(call: _Call) -> str:
            outcome = _judge(call, *caller.call(call))
            assert caller.canary() == expected
            # An answer with an idempotency key goes on when its caller is gone.
            wait_until(lambda: server.server.num_admitted == 0, "a place is held")
            return outcome

        yield check


CALLS = property_target("calls", _calls, _opened, batch_size=800, smoke_size=50)
