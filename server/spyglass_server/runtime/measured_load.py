"""Runs a load on an engine in this process, and times it."""

import itertools
import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spyglass_server.engine.messages import EngineRequest, ImageKey, RequestFailed, SamplingParams, TokenOutput
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.runtime.measured_rates import Total


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Identical requests, `at_once` of them at a time."""

    prompt: int
    answer: int
    images: int
    tiles: int
    at_once: int


@dataclass(slots=True)
class _Answer:
    """When a request was submitted, and when its tokens arrived."""

    submitted: float
    tokens: list[float] = field(default_factory=list)


class MeasuredLoad:
    """A load that runs on the engine in turns: each request that ends is followed by another.

    Its clock advances only while it runs.
    """

    def __init__(self, core: EngineCore, config: Mapping[str, Any], load: Load) -> None:
        self._core, self._load = core, load
        self._vocabulary = config["text_config"]["vocab_size"]
        self._tile_size = config["vision_config"]["image_size"]
        self._random = random.Random(load.at_once)
        self._running: dict[int, _Answer] = {}
        self._ended: list[_Answer] = []
        self._ids = itertools.count(time.monotonic_ns())
        self._steps = Total()
        self._began = 0.0

    def fill(self, seconds: float) -> None:
        """Starts the first requests, with answers of different lengths, so that they end one after another. Steps until
        all have a token, for at most `seconds`."""
        for place in range(self._load.at_once):
            self._submit(max(1, self._load.answer * (place + 1) // self._load.at_once))
        while self._steps.seconds < seconds and not all(answer.tokens for answer in self._running.values()):
            self._step()
        self._began, self._steps.count = self._steps.seconds, 0

    def run(self, seconds: float) -> None:
        """Steps for `seconds`."""
        ends = self._steps.seconds + seconds
        while self._steps.seconds < ends:
            self._step()

    def stop(self) -> None:
        """Cancels all running requests."""
        self._ended += self._running.values()
        for request_id in self._running:
            self._core.cancel(request_id)

    @property
    def seconds_per_step(self) -> float:
        """The average since all requests began."""
        return (self._steps.seconds - self._began) / self._steps.count

    def summary(self) -> dict[str, float]:
        """Returns the results since all requests began; a time that did not occur is 0."""
        begin, answers = self._began, self._ended
        firsts = [
            answer.tokens[0] - answer.submitted for answer in answers if answer.submitted > begin and answer.tokens
        ]
        gaps = [b - a for answer in answers for a, b in itertools.pairwise(answer.tokens) if a > begin]
        tokens = sum(moment > begin for answer in answers for moment in answer.tokens)
        return {
            "first_token": statistics.median(firsts) if firsts else 0.0,
            "between_tokens": statistics.median(gaps) if gaps else 0.0,
            "tokens_per_s": tokens / (self._steps.seconds - begin),
        }

    def _step(self) -> None:
        started = time.perf_counter()
        events = self._core.step()
        self._steps.add(1, time.perf_counter() - started)
        for event in events:
            self._take(event)

    def _take(self, event: object) -> None:
        if isinstance(event, RequestFailed):
            raise ValueError(f"a request failed: {event.detail}")
        if isinstance(event, TokenOutput):
            self._running[event.id].tokens.append(self._steps.seconds)
            if event.finish is not None:
                self._ended.append(self._running.pop(event.id))
                self._submit(self._load.answer)

    def _submit(self, answer: int) -> None:
        request_id, load = next(self._ids), self._load
        shared = SharedImages()
        try:
            shared.copy(self._image() for _ in range(load.images))
            request = EngineRequest(
                id=request_id,
                tokens=tuple(self._random.randrange(self._vocabulary) for _ in range(load.prompt)),
                max_tokens=answer,
                sampling=SamplingParams(seed=request_id % 2**31),
                images=shared.inputs,
                image_positions=tuple(range(load.images)),
            )
            self._running[request_id] = _Answer(self._steps.seconds)
            for event in self._core.submit(request):
                self._take(event)
        finally:
            shared.release()

    def _image(self) -> tuple[ImageKey, int, int, memoryview]:
        pixels = bytes(self._load.tiles * 3 * self._tile_size**2)
        return ImageKey("", self._random.randbytes(32)), self._load.tiles, 1, memoryview(pixels)
