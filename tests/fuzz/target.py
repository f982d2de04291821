"""What is fuzzed: a way to make examples, and a check that says what became of one, or fails."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

Example = TypeVar("Example")

Note = Callable[[str], None]
"""Takes what became of an example, in words of which there are few."""

ALL_PHASES = (Phase.generate, Phase.shrink)
FIRST = (Phase.generate,)
"""Stops at the first example that fails, where the least one would take long to find."""


class Batch(Protocol):
    """Tries examples, so many of a seed. Raises what the last of them that fails has raised."""

    def __call__(self, seed: int, count: int, phases: tuple[Phase, ...] = ALL_PHASES) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """`opened` starts what is to be tried, and stops it at the end."""

    name: str
    opened: Callable[[Note], AbstractContextManager[Batch]]
    batch_size: int
    """Of one seed; it takes some seconds."""
    smoke_size: int
    """Where the tests try it."""


def profile(count: int, phases: tuple[Phase, ...]) -> settings:
    """What every target has its examples tried with. Nothing is kept between runs: a seed says it all."""
    return settings(
        phases=phases,
        max_examples=count,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def property_target(
    name: str,
    examples: SearchStrategy[Example],
    opened: Callable[[], AbstractContextManager[Callable[[Example], str]]],
    *,
    batch_size: int,
    smoke_size: int,
) -> Target:
    """A target whose examples have nothing to do with each other. `opened` gives the check."""

    @contextmanager
    def batches(note: Note) -> Iterator[Batch]:
        with opened() as check:

            def batch(seed: int, count: int, phases: tuple[Phase, ...] = ALL_PHASES) -> None:
                @hypothesis.seed(seed)
                @profile(count, phases)
                @given(examples)
                def holds(example: Example) -> None:
                    note(check(example))

                holds()

            yield batch

    return Target(name=name, opened=batches, batch_size=batch_size, smoke_size=smoke_size)
