"""A stage of the check: decode steps of 1 to 64 rows, with and without images, and of rows of unlike lengths."""

from functools import partial

from stage_run import StageRun
from subject import Subject

ROWS, CONTEXTS = (1, 8, 32, 64), (1024, 8192)
UNLIKE = (8192, 4096, 3000, 2048, 1024, 1000, 600, 500, *[200] * 24)
"""What traffic is: rows of very different lengths, one of which sees an image."""
SMOKE_ROWS, SMOKE_CONTEXTS, SMOKE_UNLIKE = (1, 2), (20,), (40, 9)
TIMES = 20


def run(run: StageRun) -> None:
    """Runs the stage."""
    counts, contexts = (SMOKE_ROWS, SMOKE_CONTEXTS) if run.is_smoke else (ROWS, CONTEXTS)
    unlike = SMOKE_UNLIKE if run.is_smoke else UNLIKE
    subject = Subject(run, counts[-1] * contexts[-1] + sum(unlike), counts[-1])
    for context in contexts:
        for count in counts:
            for num_seeing in (0, count):
                run.case(f"{count} rows of {context}", partial(step, subject, count, context, num_seeing))
    run.case("rows of unlike lengths", partial(unlike_lengths, subject, unlike))


def step(subject: Subject, count: int, context: int, num_seeing: int) -> None:
    """A step of rows with so many tokens of context each, of which so many see an image each."""
    run, case = subject.run, f"{subject.run.size} {subject.run.weights}, {count} rows of {context}"
    if num_seeing:
        case += ", each with an image"
    if not subject.has_room(count * context):
        run.record("decode", case=case, skipped=f"{case}: the cache is too small")
        return
    ms = subject.step_ms(subject.decode_rows([context] * count, num_seeing), 1 if run.is_smoke else TIMES)
    run.figure(
        "decode",
        case,
        ms,
        subject.decode_limit_ms(count * context, num_seeing),
        f"{1000 * count / ms:.0f} tokens/s",
        size=run.size,
        rows=count,
        context=context,
        num_seeing=num_seeing,
    )


def unlike_lengths(subject: Subject, contexts: tuple[int, ...]) -> None:
    """A step of rows of very different lengths, one of which sees an image."""
    run = subject.run
    ms = subject.step_ms(subject.decode_rows(contexts, 1), 1 if run.is_smoke else TIMES)
    case = f"{run.size} {run.weights}, {len(contexts)} rows"
    run.figure("decode of unlike lengths", case, ms, subject.decode_limit_ms(sum(contexts), 1), size=run.size)
