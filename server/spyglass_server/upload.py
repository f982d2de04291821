"""Assembles the announced images of a generation from their chunks, within the limits."""

import asyncio
from collections.abc import Callable

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES
from spyglass_server.codec.chat import ImageLimits, ImageSize
from spyglass_server.codec.checks import nothing_unknown
from spyglass_server.codec.start import Spec
from spyglass_server.errors import DeadlineExceeded, InvalidImage, InvalidRequest
from spyglass_server.prompt.prompt_maker import ChatInput

_FIELD = "image_chunk"
_TIMEOUT_S = 60.0
"""How long a generation may hold its place while its images are on their way."""


class Upload:
    """The images of one generation, inline and announced."""

    def __init__(self) -> None:
        self._images: list[bytes | None] = []
        self._fields: tuple[str, ...] = ()
        self._pieces: dict[int, bytearray] = {}
        self._max_bytes = 0
        self._grow: Callable[[int], None]
        self._complete = asyncio.Event()

    def expect(self, spec: Spec, limits: ImageLimits, grow: Callable[[int], None]) -> None:
        """Sets which images to expect; chunks are refused before that. `grow` takes the size of each.

        Raises:
            InvalidRequest: only the size of an image is given.
        """
        self._fields = tuple(slot.field for slot in spec.input.images) if isinstance(spec.input, ChatInput) else ()
        self._images = []
        for image, field in zip(spec.images, self._fields, strict=True):
            if isinstance(image, ImageSize):
                raise InvalidImage("the image itself is needed, not only its size", field=field)
            self._images.append(image)
        self._pieces = {i: bytearray() for i, data in enumerate(spec.images) if data is None}
        self._max_bytes, self._grow = limits.max_bytes, grow
        self._check_complete()

    def add(self, chunk: pb.ImageChunk) -> None:
        """Takes the next chunk of an image.

        Raises:
            InvalidRequest: no such image is expected, a limit is exceeded, or the chunk has a field of a later version.
            TooManyRequests: there is no room for it.
        """
        nothing_unknown(chunk, _FIELD)
        pieces = self._pieces.get(chunk.image_index)
        if pieces is None:
            raise InvalidRequest(f"no image {chunk.image_index} is awaited", field=f"{_FIELD}.image_index")
        if len(chunk.data) > MAX_IMAGE_CHUNK_BYTES:
            raise InvalidRequest(
                f"a piece of an image has at most {MAX_IMAGE_CHUNK_BYTES} bytes", field=f"{_FIELD}.data"
            )
        self._grow(len(chunk.data))
        pieces += chunk.data
        if len(pieces) > self._max_bytes:
            raise InvalidImage(
                f"the image is larger than {self._max_bytes} bytes", field=self._fields[chunk.image_index]
            )
        if chunk.last:
            self._images[chunk.image_index] = bytes(self._pieces.pop(chunk.image_index))
            self._check_complete()

    async def complete(self) -> list[bytes]:
        """Waits for all images and returns them in reading order; later chunks are refused.

        Raises:
            DeadlineExceeded: the images do not arrive in time.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._complete.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the announced images did not arrive within {_TIMEOUT_S:.0f} s") from error
        finally:
            self._pieces.clear()
        images, self._images = self._images, []  # they are large
        return [data for data in images if data is not None]

    def _check_complete(self) -> None:
        if not self._pieces:
            self._complete.set()
