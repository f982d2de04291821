"""Stand-ins for the model, and a server one can start in a line with the faults one wants."""

import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from grpc import aio

from spyglass.v1 import chat_pb2, inference_pb2, inference_pb2_grpc
from spyglass_client.target import open_channel
from spyglass_server.app import Server
from spyglass_server.config import resolve
from spyglass_server.engine.handle.async_engine import AsyncEngine
from spyglass_server.engine.messages import EngineInfo, ImageInput, ImageKey, MemoryInfo
from spyglass_server.engine.structured_output import GrammarCompiler
from spyglass_server.engine.worker.batch import Pending, Row, RowOutput
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.runtime.image_spans import image_spans
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.outputs import sampled_rows, with_drafted
from spyglass_server.settings import SETTINGS

KEY = "test-key"
BRIDGE_KEY = "test-bridge-key"


class FakeRunner:
    """Computes no tensors, but keeps books as a model would, and notices every mistake of the scheduler.

    A page holds the tokens that were written to it and the images that they saw. A row may only be
    computed when all earlier positions of its sequence stand in its pages, and its images are encoded. The
    next token is a hash of everything that the model would have seen.
    """

    looks_ahead = False

    def __init__(self, page_size: int, vocab_size: int = 251, alphabet: Sequence[int] | None = None) -> None:
        self.page_size = page_size
        self.pages: dict[int, dict[int, tuple[int, tuple[ImageKey, ...]]]] = {}
        self.num_computed = 0
        self.pixels: set[ImageKey] = set()
        self.states: dict[int, tuple[ImageKey, int]] = {}  # what stands in a tile: an image and the place in it
        self.num_encoded = 0
        self.slices = 2
        self.encoding: dict[ImageKey, int] = {}
        self.alphabet = alphabet or range(vocab_size)
        self.bad_tokens: set[int] = set()
        self.drawn: list[int] = []

    def take_image(self, image: ImageInput) -> None:
        assert image.key not in self.pixels
        self.pixels.add(image.key)

    def drop_image(self, key: ImageKey) -> None:
        self.pixels.remove(key)
        self.encoding.pop(key, None)

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        assert key in self.pixels
        self.encoding[key] = self.encoding.get(key, 0) + 1
        if self.encoding[key] < self.slices:
            return False
        del self.encoding[key]
        self.num_encoded += 1
        self.states |= {tile: (key, place) for place, tile in enumerate(tiles)}
        return True

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        contents = [dict(self.pages[source]) for source, _ in pairs]
        for (_, target), content in zip(pairs, contents, strict=True):
            self.pages[target] = content

    def start(self, rows: Sequence[Row]) -> Pending:
        """Computes at once, as a device would in the meantime; what it finds, or what goes wrong, is told later."""
        known = [
            replace(row, tokens=tuple(self.drawn[-1 - token] if token < 0 else token for token in row.tokens))
            for row in rows
        ]
        try:
            outputs = self.execute(known)
        except RuntimeError as error:
            return partial(_raise, error)
        self.drawn = [token for output in outputs for one in (output, *output.drafted) for token in one.tokens]
        return lambda: outputs

    def close(self) -> None:
        """There are no other processes."""

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        if any(token in self.bad_tokens for row in rows for token in row.tokens):
            raise RuntimeError("a bad token")
        writes = {(row.pages[p // self.page_size], p) for row in rows for p in range(row.start, row.end)}
        assert len(writes) == sum(len(row.tokens) for row in rows), "two rows write to the same place"
        for row in rows:
            self.num_computed += len(row.tokens)
            for position, token in zip(range(row.start, row.end), row.tokens, strict=True):
                page = self.pages.setdefault(row.pages[position // self.page_size], {})
                page[position % self.page_size] = (token, self._seen(row, position))
        return with_drafted(
            rows,
            [RowOutput(tokens=tuple(self._next(row, choice) for choice in row.choices)) for row in sampled_rows(rows)],
        )

    def _seen(self, row: Row, position: int) -> tuple[ImageKey, ...]:
        """The images that a position sees, as they stand in their tiles."""
        seen = []
        for span in image_spans(row.request.image_positions, position, position + 1):
            for tiles in row.image_tiles[span.first : span.last]:
                assert all(tile in self.states for tile in tiles), "an image is not encoded"
                found = [self.states[tile] for tile in tiles]
                assert found == [(found[0][0], place) for place in range(len(tiles))], "an image is not whole"
                seen.append(found[0][0])
        return tuple(seen)

    def _next(self, row: Row, choice: int) -> int:
        assert all(tile in self.states for tiles in row.image_tiles for tile in tiles), "an image is not encoded"
        seen = [self.pages[row.pages[p // self.page_size]][p % self.page_size] for p in range(row.end)]
        digest = hashlib.sha256(repr((seen, row.request.sampling.seed, choice)).encode()).digest()
        return self.alphabet[int.from_bytes(digest[:4]) % len(self.alphabet)]


def _raise(error: Exception) -> list[RowOutput]:
    raise error


@dataclass(frozen=True)
class FakeLoader:
    """Loads an engine with a FakeRunner; picklable, so that it works across the process's start."""

    num_pages: int = 256
    page_size: int = 4
    max_tiles: int = 16
    limits: Limits = field(default_factory=lambda: Limits(max_batch=16, max_step_tokens=64))
    step_s: float = 0.0
    bad_token: int | None = None
    fails: str | None = None
    alphabet: tuple[int, ...] = tuple(range(64, 90))  # a to z in the tiny tokenizer
    grammars: GrammarCompiler | None = None

    def load(self) -> tuple[EngineCore, EngineInfo]:
        if self.fails:
            raise ValueError(self.fails)
        runner = _SlowRunner(self.page_size, alphabet=self.alphabet)
        runner.step_s = self.step_s
        if self.bad_token is not None:
            runner.bad_tokens.add(self.bad_token)
        scheduler = Scheduler(self.limits, PagePool(self.num_pages, self.page_size), ImageCache(self.max_tiles))
        info = EngineInfo(
            dtype="float32",
            quantization="none",
            device="fake",
            max_tokens=self.num_pages * self.page_size,
            max_image_tiles=self.max_tiles,
            max_choices=self.limits.max_batch,
            num_cross_layers=0,
            patches_per_side=1,
            ranks=(
                MemoryInfo(
                    host="here",
                    device_name="fake",
                    device_bytes=1 << 30,
                    weight_bytes=1 << 20,
                    kv_cache_tokens=self.num_pages * self.page_size,
                    kv_cache_bytes=4 * self.num_pages * self.page_size,
                    image_cache_tiles=self.max_tiles,
                    image_cache_bytes=3 * self.max_tiles,
                ),
            ),
        )
        return EngineCore(scheduler, runner, self.grammars), info


class AllowsAll:
    """Compiles every grammar to one that allows all tokens: a FakeRunner is held to none."""

    is_ready = True

    def matcher(self, grammar: str) -> "AllowsAll":
        return self

    def allowed(self) -> bytes:
        return b"\xff" * 1024

    def advance(self, token: int) -> None:
        """Every token is right."""

    def forced(self) -> tuple[int, ...]:
        return ()

    def fork(self) -> "AllowsAll":
        return self


class _SlowRunner(FakeRunner):
    step_s = 0.0

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        time.sleep(self.step_s)
        return super().execute(rows)


@dataclass
class TestServer:
    """A running server and a channel to it."""

    __test__ = False

    server: Server
    channel: aio.Channel

    @property
    def stub(self) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    def open_stream(self, key: str = KEY) -> "Stream":
        return Stream(self.stub.Generate(metadata=auth(key)))

    def kill_engine(self) -> None:
        pid = self.server.engine.pid
        assert pid is not None
        os.kill(pid, 9)


class Stream:
    """A client's side of a Generate stream, without any cleverness."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.frames: list[inference_pb2.GenerateResponse] = []

    async def start(self, event_id: int, start: inference_pb2.Start) -> None:
        await self.call.write(inference_pb2.GenerateRequest(id=event_id, start=start))

    async def cancel(self, event_id: int) -> None:
        await self.call.write(inference_pb2.GenerateRequest(id=event_id, cancel=inference_pb2.Cancel()))

    async def send_chunk(self, event_id: int, index: int, data: bytes, last: bool) -> None:
        chunk = inference_pb2.ImageChunk(image_index=index, data=data, last=last)
        await self.call.write(inference_pb2.GenerateRequest(id=event_id, image_chunk=chunk))

    async def until(self, event_id: int, kind: str) -> inference_pb2.Event:
        """Reads on until an event of this kind has come for this id; finds it among earlier ones too."""
        while True:
            for frame in self.frames:
                for event in frame.events:
                    if event.id == event_id and event.WhichOneof("kind") == kind:
                        return event
                    assert event.id != event_id or not event.HasField("finished"), event
            frame = await self.call.read()
            assert frame is not aio.EOF, f"the stream ended before {kind} of {event_id}"
            self.frames.append(frame)

    async def finish(self) -> None:
        """Half-closes and reads to the end, which raises if it is an error."""
        with contextlib.suppress(aio.InternalError):  # it has ended already
            await self.call.done_writing()
        await self.read_all()

    async def read_all(self) -> None:
        """Reads to the end, whatever ends the stream."""
        while (frame := await self.call.read()) is not aio.EOF:
            self.frames.append(frame)

    def events(self, event_id: int) -> list[inference_pb2.Event]:
        return [event for frame in self.frames for event in frame.events if event.id == event_id]

    def text(self, event_id: int, index: int = 0) -> str:
        return "".join(
            event.delta.text
            for event in self.events(event_id)
            if event.WhichOneof("kind") == "delta" and event.delta.index == index
        )

    def finished(self, event_id: int) -> inference_pb2.Finished:
        found = [event.finished for event in self.events(event_id) if event.WhichOneof("kind") == "finished"]
        assert len(found) == 1, f"{len(found)} Finished for {event_id}"
        return found[0]


def auth(key: str = KEY) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def chat(text: str, **options: Any) -> inference_pb2.Start:
    """A Start with one user message."""
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text=text)])
    return inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]), **options)


def image_chat(text: str, images: Sequence[bytes | None], **options: Any) -> inference_pb2.Start:
    """A Start with one user message that shows images; None is an announced one."""
    parts = [
        chat_pb2.Part(image=chat_pb2.Image(announced=chat_pb2.Announced()))
        if data is None
        else chat_pb2.Part(image=chat_pb2.Image(data=data))
        for data in images
    ]
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[*parts, chat_pb2.Part(text=text)])
    return inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]), **options)


@contextlib.asynccontextmanager
async def run_test_server(
    checkpoint: Path, data_dir: Path, loader: Any = None, tls: Any = None, **settings: Any
) -> AsyncIterator[TestServer]:
    """Starts a server on a free port; `loader` None loads the checkpoint's model. `tls`, a Tls, is the channel's."""
    defaults = {setting.dest: setting.default for setting in SETTINGS}
    given = {"grpc": "127.0.0.1:0", "api_key": (KEY,), "bridge_key": BRIDGE_KEY, "drain_timeout": 5.0}
    given |= {"model": str(checkpoint), "data_dir": str(data_dir)}
    config = resolve(SimpleNamespace(**(defaults | given | settings)))  # type: ignore[arg-type]
    loader = loader or CheckpointLoader(folder=checkpoint, settings=config.engine)
    server = Server(config, checkpoint, AsyncEngine(loader))
    try:
        await server.start()
        async with open_channel(server.address, tls) as channel:
            yield TestServer(server, channel)
    finally:
        await server.stop()
