"""Fuzzes a part of Spyglass for a time: the command behind `make fuzz`.

    make fuzz ARGS="--target images --minutes 30"

Prints what was tried and what became of it. At a finding it prints the least example and the seed that repeats it, and
ends with 1.
"""

import argparse
import io
import sys
import time
import traceback
from collections import Counter

from hypothesis import Phase

from fuzz.target import ALL_PHASES, FIRST, Batch, Target
from fuzz.targets import TARGETS

_REPORT_S = 60.0
_MOST_COMMON = 12


class Campaign:
    """The trial of one target."""

    def __init__(self, target: Target, phases: tuple[Phase, ...]) -> None:
        self._target, self._phases = target, phases
        self._outcomes = Counter[str]()
        self._began = self._reported = time.monotonic()

    def run(self, seed: int, seconds: float, num_batches: int | None) -> bool:
        """Tries seeds, from one on, until the time is over or so many are done. Returns whether all has held."""
        print(f"{self._target.name}: from seed {seed} on", flush=True)
        ends_at = self._began + seconds
        last = seed - 1 if num_batches is None else seed + num_batches - 1
        with self._target.opened(self._take) as batch:
            while True:
                if not self._try(batch, seed):
                    return False
                if seed == last or (num_batches is None and time.monotonic() > ends_at):
                    break
                seed += 1
        self._report(f"nothing was found up to seed {seed}")
        for outcome, count in self._outcomes.most_common(_MOST_COMMON):
            print(f"    {count:8,}  {outcome}")
        return True

    def _try(self, batch: Batch, seed: int) -> bool:
        try:
            batch(seed, self._target.batch_size, self._phases)
        except Exception as finding:
            traceback.print_exception(finding, file=sys.stdout)
            self._report("FOUND SOMETHING")
            print(f'    make fuzz ARGS="--target {self._target.name} --seed {seed}" repeats it', flush=True)
            return False
        return True

    def _take(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        if time.monotonic() - self._reported > _REPORT_S:
            self._report("goes on")

    def _report(self, what: str) -> None:
        self._reported = time.monotonic()
        took_s, tried = self._reported - self._began, self._outcomes.total()
        print(
            f"{self._target.name}: {what}: {tried:,} examples in {took_s:.0f} s, {tried / took_s:.0f} a second, "
            f"{len(self._outcomes)} distinct outcomes",
            flush=True,
        )


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Tries examples at random until one fails.")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all", help="what to try, all by turns")
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long, each target")
    parser.add_argument("--seed", type=int, help="tries the examples of this seed alone")
    parser.add_argument("--first-seed", type=int, default=0, help="where to begin; another run has tried those before")
    parser.add_argument("--first", action="store_true", help="show the first example that fails, not the least")
    options = parser.parse_args()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="backslashreplace")  # examples hold anything
    chosen = TARGETS.values() if options.target == "all" else [TARGETS[options.target]]
    num_batches = None if options.seed is None else 1
    first = options.first_seed if options.seed is None else options.seed
    held = [
        Campaign(target, FIRST if options.first else ALL_PHASES).run(first, 60 * options.minutes, num_batches)
        for target in chosen
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
