"""The client's Generate stream, with the task that runs it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from spyglass_client.errors import ClientClosedError, InternalError, SpyglassError, UnavailableError
from spyglass_client.request import ImageUpload
from spyglass_common.generate_stream import GenerateCall, GenerateStream

_CLOSED = "the client was closed"


class RunningStream(GenerateStream[SpyglassError]):
    """A stream that runs until its call ends or it is closed. `explain` converts the call's failure to an exception."""

    def __init__(self, call: GenerateCall, explain: Callable[[grpc.aio.AioRpcError], Awaitable[SpyglassError]]) -> None:
        super().__init__(call)
        self._explain = explain
        self._task = asyncio.create_task(self._run_and_close(), name="spyglass generate stream")

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    async def aclose(self) -> None:
        """Cancels the call; its running generations end with ClientClosedError."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self.close(ClientClosedError(_CLOSED))  # for a task that was cancelled before its first step
        if not self._task.cancelled():
            self._task.result()

    async def _run_and_close(self) -> None:
        failure: SpyglassError = ClientClosedError(_CLOSED)
        try:
            if error := await self.run():
                failure = await self._explain(error)
            else:
                failure = UnavailableError("the server ended the stream", reason="STREAM_ENDED")
        except Exception:
            failure = InternalError("the client failed; close() says why")
            raise
        finally:
            self.close(failure)


@dataclass(frozen=True, slots=True)
class StreamedRequest:
    """A generation on its stream, with its announced images."""

    _stream: RunningStream
    _id: int
    _images: tuple[ImageUpload, ...]

    def send_images(self) -> None:
        """Sends the announced images; call it after Accepted."""
        for image in self._images:
            self._stream.send_image(self._id, image.index, image.data)

    def cancel(self) -> None:
        """Asks the server to end the generation; its Finished still arrives."""
        self._stream.cancel(self._id)
