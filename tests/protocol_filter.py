"""What lies between programs of different versions: a server in the middle that speaks the protocol of one of them.

    async with run_filter(target, OlderProtocol()) as older: ...  # a bridge at `older` talks to an older server
    async with run_filter(target, NewerProtocol()) as newer: ...

Of the messages, an older program knows some fields, and a newer one has more than this one knows.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from spyglass.v1 import inference_pb2 as pb

PREVIOUS = Path(__file__).resolve().parent.parent / "protos" / "previous.binpb"
"""The protocol of the version before."""

_UNKNOWN_FIELD = b"\xc2\x3e\x03new"  # field 1000, three bytes


class Version(Protocol):
    """What another version makes of messages."""

    def knows(self, path: str) -> bool:
        """Whether it has this method."""
        ...

    def request(self, path: str, data: bytes) -> bytes:
        """A request as it passes on."""
        ...

    def response(self, path: str, data: bytes) -> bytes:
        """A response as it passes on."""
        ...


class OlderProtocol:
    """Drops all that the version before did not know."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(PREVIOUS.read_bytes()).file:
            self._pool.Add(file)

    def knows(self, path: str) -> bool:
        return self._method(path) is not None

    def request(self, path: str, data: bytes) -> bytes:
        method = self._method(path)
        return data if method is None else _without_unknown(method.input_type, data)

    def response(self, path: str, data: bytes) -> bytes:
        method = self._method(path)
        return data if method is None else _without_unknown(method.output_type, data)

    def _method(self, path: str) -> MethodDescriptor | None:
        _, service, name = path.split("/")
        try:
            return self._pool.FindMethodByName(f"{service}.{name}")
        except KeyError:
            return None


class NewerProtocol:
    """Adds to every message what this version does not know, and to frames an event of a kind of its own."""

    def knows(self, path: str) -> bool:
        return True

    def request(self, path: str, data: bytes) -> bytes:
        return data + _UNKNOWN_FIELD

    def response(self, path: str, data: bytes) -> bytes:
        if path.endswith("/Generate"):
            frame = pb.GenerateResponse.FromString(data)
            for event in [*frame.events]:
                news = frame.events.add(id=event.id)
                news.MergeFromString(_UNKNOWN_FIELD)
            frame.events.sort(key=lambda event: event.HasField("finished"))
            data = frame.SerializeToString()
        return data + _UNKNOWN_FIELD


def _without_unknown(kind: Descriptor, data: bytes) -> bytes:
    message = message_factory.GetMessageClass(kind).FromString(data)
    message.DiscardUnknownFields()
    return message.SerializeToString()


class _Handlers(grpc.GenericRpcHandler):
    """Passes every call on to another server."""

    def __init__(self, channel: grpc.aio.Channel, version: Version) -> None:
        self._channel, self._version = channel, version

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        if path.startswith("/spyglass.") and not self._version.knows(path):
            return None

        async def pass_on(requests: AsyncIterator[bytes], context: Any) -> None:
            async def changed() -> AsyncIterator[bytes]:
                async for request in requests:
                    yield self._version.request(path, request)

            call: Any = self._channel.stream_stream(path)(
                changed(),  # type: ignore[arg-type]
                metadata=context.invocation_metadata(),
            )
            try:
                async for response in call:
                    await context.write(self._version.response(path, response))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details(), error.trailing_metadata())

        return grpc.stream_stream_rpc_method_handler(pass_on)  # one request or many: the same on the wire


@asynccontextmanager
async def run_filter(target: str, version: Version) -> AsyncIterator[str]:
    """Listens, while the context is open, at the address that it gives."""
    async with grpc.aio.insecure_channel(target) as channel:
        server = grpc.aio.server(handlers=[_Handlers(channel, version)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)
