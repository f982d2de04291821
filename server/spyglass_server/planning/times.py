"""How long the steps of a load take, and which resource each waits for."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

from spyglass_server.planning.costs import Precision, Step, Work, context_cost, image_tokens, image_work, step_work
from spyglass_server.planning.hardware import Rates
from spyglass_server.planning.sizes import ModelSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Identical requests: tokens of prompt and answer, pictures, and the tiles of each picture."""

    prompt: int
    answer: int
    images: int = 0
    tiles: int = 4

    @property
    def tokens(self) -> int:
        """The tokens that a request keeps in pages."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Seconds by the resource that a step waits for; reading and computing overlap, so only the longer counts."""

    bandwidth: float = 0.0
    compute: float = 0.0
    link: float = 0.0
    launches: float = 0.0

    def __add__(self, other: "Time") -> "Time":
        return Time(
            bandwidth=self.bandwidth + other.bandwidth,
            compute=self.compute + other.compute,
            link=self.link + other.link,
            launches=self.launches + other.launches,
        )

    def __mul__(self, factor: float) -> "Time":
        return Time(
            bandwidth=self.bandwidth * factor,
            compute=self.compute * factor,
            link=self.link * factor,
            launches=self.launches * factor,
        )

    def __sub__(self, other: "Time") -> "Time":
        return self + other * -1.0

    @property
    def seconds(self) -> float:
        """The total time."""
        return self.bandwidth + self.compute + self.link + self.launches

    @property
    def limit(self) -> str:
        """The resource that takes most of the time."""
        return max(("bandwidth", "compute", "link", "launches"), key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A load with `at_once` requests at once.

    `first_token` is how long a new request waits while all others decode, or alone; `between_tokens` is a decode step
    of all requests; `prompt` is what a prompt with its pictures takes alone; `request` is how long a request lasts
    while others come and go. `tokens_per_s` counts the answers of all requests.
    """

    at_once: int
    first_token: Time
    between_tokens: Time
    prompt: Time
    request: Time
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Times the steps of a model, or of a rank's part of it, on hardware that reaches `rates`.

    A step computes at most `max_step_tokens` prompt tokens, or `max_chunk_tokens` while others decode; it computes
    `slice_operations` of a picture, and no prompt alongside them while others decode.
    """

    model: ModelSizes
    precision: Precision
    rates: Rates
    num_ranks: int
    max_step_tokens: int
    max_chunk_tokens: int
    slice_operations: float

    def speed(self, load: Load, at_once: int) -> Speed:
        """Returns the speed of a load whose requests arrive as others end."""
        step, others = self._decode(load, at_once), self._decode(load, at_once - 1)
        picture = image_work(self.model, self.precision, load.tiles)
        own_pictures = self.time(picture) * load.images
        slices = math.ceil((picture.operations + picture.linear_operations) / self.slice_operations) * load.images
        prompt = self._prompt(load, at_once - 1)
        first = own_pictures + others * slices + prompt
        own = own_pictures + prompt - others * len(list(self._chunks(load.prompt, at_once - 1)))
        request = step * (load.answer - 1) + own * at_once if at_once > 1 else first + step * (load.answer - 1)
        return Speed(
            at_once=at_once,
            first_token=first,
            between_tokens=step,
            prompt=own_pictures + self._prompt(load, 0),
            request=request,
            tokens_per_s=at_once * load.answer / request.seconds,
        )

    def time(self, work: Work) -> Time:
        """How long some work takes."""
        rates, others = self.rates, self.num_ranks - 1
        reading = work.read_bytes / rates.bytes_per_s
        computing = work.linear_operations / rates.linear_operations_per_s + work.operations / rates.operations_per_s
        sending = 2 * others / self.num_ranks * work.sum_bytes / rates.link_bytes_per_s
        return Time(
            bandwidth=reading if reading >= computing else 0.0,
            compute=computing if reading < computing else 0.0,
            link=work.num_sums * rates.sum_s + sending if others else 0.0,
            launches=work.num_kernels * rates.kernel_s,
        )

    def _decode(self, load: Load, num_rows: int) -> Time:
        """The time of a decode step in the middle of the answers."""
        if not num_rows:
            return Time()
        return self._step(load, Step(num_rows=num_rows, context=load.prompt + load.answer / 2))

    def _prompt(self, load: Load, num_rows: int) -> Time:
        """The time of the steps that compute a prompt alongside `num_rows` decoding rows."""
        context = load.prompt + load.answer / 2
        return _sum(
            self._step(
                load,
                Step(num_rows=num_rows, context=context, prompt_tokens=tokens, start=start),
                is_end=start + tokens == load.prompt,
            )
            for start, tokens in self._chunks(load.prompt, num_rows)
        )

    def _chunks(self, prompt: int, num_rows: int) -> Iterator[tuple[int, int]]:
        """Yields where each step begins in a prompt and how many tokens it computes, as in the engine's budget."""
        cost, start = context_cost(self.model.text), 0
        while start < prompt:
            size = max(1, int(self.max_chunk_tokens / (1 + cost * start))) if num_rows else self.max_step_tokens
            tokens = min(size, prompt - start)
            yield start, tokens
            start += tokens

    def _step(self, load: Load, step: Step, *, is_end: bool = True) -> Time:
        seen = load.images * image_tokens(self.model, load.tiles)
        seeing = replace(step, image_tokens=seen)
        return self.time(step_work(self.model, self.precision, seeing, is_end=is_end))


def _sum(times: Iterable[Time]) -> Time:
    return reduce(add, times, Time())
