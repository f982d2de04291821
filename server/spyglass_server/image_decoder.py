"""Decodes pictures in separate processes, with limits on time and memory: pictures are untrusted input."""

import asyncio
import hashlib
import multiprocessing
import os
import re
import resource
import signal
import warnings
from concurrent.futures import TimeoutError as Overdue
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from spyglass_common.fair_slots import FairSlots
from spyglass_server.decoded_pictures import DecodedPictures
from spyglass_server.errors import InvalidImage
from spyglass_server.images import ImageError, ImageSpec, ImageTiles, decode_tiles
from spyglass_server.process_name import name_process

PROCESS_NAME = "spyglass-images"
_NUM_WORKERS = 2
_DECODE_S = 10.0
"""The largest allowed picture takes about a second."""
_BYTES_A_PIXEL = 20
"""Memory for a picture with transparency, which is put on white: each step makes a copy."""
_SPARE_BYTES = 256 << 20
MAX_KEPT_BYTES = 64 << 20
"""Maximum size of decoded pictures kept for the next question about them: 17 pictures of four tiles."""
_LARGE_BYTES = 256 << 10
_NICENESS = 5
"""The event loops of server and bridge take precedence."""


class ImageDecoder:
    """A few processes that decode for all tenants, who take turns; decoded pictures are kept for a while."""

    def __init__(self, max_pixels: int) -> None:
        """Starts the processes in the background."""
        self._max_pixels = max_pixels
        self._decoded = DecodedPictures(MAX_KEPT_BYTES)
        self._slots = FairSlots(_NUM_WORKERS, share=_NUM_WORKERS // 2)
        self._pool = ProcessPool(
            max_workers=_NUM_WORKERS,
            context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(max_pixels * _BYTES_A_PIXEL + _SPARE_BYTES,),
        )
        for _ in range(_NUM_WORKERS):
            self._pool.schedule(_nothing)

    async def tiles(self, data: bytes, spec: ImageSpec, *, tenant: str, field: str) -> ImageTiles:
        """Returns the tiles of an encoded picture; `field` is the request field that it came from.

        Raises:
            InvalidImage: it has an unsupported format, is damaged or too large, or takes too much time or memory.
        """
        key = tenant, await self._digest(data), spec
        if (known := self._decoded.find(key)) is not None:
            return known
        async with self._slots.hold(tenant):
            work = self._pool.schedule(decode_tiles, args=(data, self._max_pixels, spec), timeout=_DECODE_S)
            try:
                tiles: ImageTiles = await asyncio.wrap_future(work)
            except ImageError as error:
                raise InvalidImage(str(error), field=field) from error
            except (Overdue, MemoryError, ProcessExpired) as error:
                raise InvalidImage("the image takes too much time or memory to decode", field=field) from error
        self._decoded.keep(key, tiles)
        return tiles

    async def _digest(self, data: bytes) -> bytes:
        """Hashes a file; a large one is hashed in a thread, so that the event loop keeps running."""
        if len(data) <= _LARGE_BYTES:
            return hashlib.sha256(data).digest()
        return await asyncio.to_thread(lambda: hashlib.sha256(data).digest())

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


def _prepare(num_bytes: int) -> None:
    """Limits this process to `num_bytes` more memory than it has, and lowers its CPU priority."""
    name_process(PROCESS_NAME)
    os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    warnings.simplefilter("ignore")  # warnings about callers' pictures are not for the server's log
    has = int(re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (has + num_bytes, has + num_bytes))


def _nothing() -> None:
    """Makes the pool start a process."""
