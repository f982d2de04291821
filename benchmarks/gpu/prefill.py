"""A stage of the check: pieces of prompts of lengths that are computed again, and of lengths that were never seen."""

from functools import partial

import costs
from stage_run import StageRun
from subject import Subject
from timing import wall_ms

SHAPES, NEW_LENGTHS = ((512, 0), (2048, 0), (512, 16_384)), tuple(range(300, 306))
"""Tokens of a piece and tokens before it; lengths of prompts."""
SMOKE_SHAPES, SMOKE_NEW_LENGTHS = ((16, 0), (8, 32)), (10, 11, 12)
TIMES = 8


def run(run: StageRun) -> None:
    """Runs the stage."""
    shapes = SMOKE_SHAPES if run.is_smoke else SHAPES
    subject = Subject(run, max(map(sum, shapes)), 1)
    new = SMOKE_NEW_LENGTHS if run.is_smoke else NEW_LENGTHS
    run.case("prefill of new lengths", partial(new_lengths, subject, new))
    for tokens, start in shapes:
        run.case(f"prefill of {tokens} after {start}", partial(piece, subject, tokens, start))


def piece(subject: Subject, tokens: int, start: int) -> None:
    """A step of a piece of a prompt."""
    run, config = subject.run, subject.config
    ms = subject.step_ms([subject.prompt(tokens, start)], 1 if run.is_smoke else TIMES)
    operations = costs.prefill_operations(config, tokens, start)
    limit_ms = subject.limits.ms(costs.layer_bytes(config, sees_image=False), operations)
    case = f"{tokens} tokens after {start}"
    run.figure("prefill", case, ms, limit_ms, f"{1000 * tokens / ms:.0f} tokens/s", tokens=tokens, start=start)


def new_lengths(subject: Subject, lengths: tuple[int, ...]) -> None:
    """Some libraries prepare themselves for each length; the first prompt of all prepares more than that."""
    found = []
    for tokens in lengths:
        rows = [subject.prompt(tokens)]
        found.append(wall_ms(subject.device, partial(subject.runner.execute, rows), times=1, warmup=0))
    more = f"{found[0]:.1f} for the first, {found[1]:.1f} for the second"
    slowest = max(found[1:])
    subject.run.figure("longest prefill of a new length", "", slowest, more=more, over_second=slowest / found[1])
