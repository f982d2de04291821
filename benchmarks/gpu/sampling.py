"""A stage of the check: decode steps that differ in how their tokens are chosen."""

from harness import GREEDY, TEMPERATURE, TOP_P
from stage_run import StageRun
from subject import Subject

ROWS, SMOKE_ROWS = (1, 64), (2,)
CONTEXT, SMOKE_CONTEXT = 64, 16
TIMES = 20


def run(run: StageRun) -> None:
    """Runs the stage."""
    counts, context = (SMOKE_ROWS, SMOKE_CONTEXT) if run.is_smoke else (ROWS, CONTEXT)
    subject = Subject(run, counts[-1] * context, 1)
    for count in counts:
        limit_ms = subject.decode_limit_ms(count * context)
        for how, sampling in (("greedy", GREEDY), ("temperature", TEMPERATURE), ("temperature and top_p", TOP_P)):
            rows = subject.decode_rows([context] * count, sampling=sampling)
            ms = subject.step_ms(rows, 1 if run.is_smoke else TIMES)
            run.figure("sampling", f"{count} rows, {how}", ms, limit_ms, rows=count, how=how)
