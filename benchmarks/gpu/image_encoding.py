"""A stage of the check: images of four tiles, encoded alone, and up to the first token of an answer about one."""

import statistics
import time
from functools import partial

import costs
from engine_load import run_requests
from harness import GREEDY, encode, shared_noise
from spyglass_server.engine.messages import EngineRequest
from stage_run import StageRun
from subject import TILES_OF_IMAGE, Subject
from timing import synchronize

PROMPT, SMOKE_PROMPT = 64, 12
"""Tokens of the question about an image."""
COUNT, SMOKE_COUNT = 5, 2
"""Images; the first is not counted."""


def run(run: StageRun) -> None:
    """Runs the stage."""
    subject = Subject(run, 4096, 2)
    run.case("encoding an image", partial(encoding, subject))
    run.case("first token about an image", partial(first_token, subject))


def encoding(subject: Subject) -> None:
    """From pixels on the host to states in tiles."""
    run, seconds, slices = subject.run, [], 0
    for number in range(SMOKE_COUNT if run.is_smoke else COUNT):
        with shared_noise(subject.config.vision.tile_size, [(b"%d" % number, 2, 2)]) as shared:
            synchronize(subject.device)
            started = time.perf_counter()
            slices = encode(subject.runner, shared.inputs[0], range(TILES_OF_IMAGE))
            synchronize(subject.device)
            seconds.append(time.perf_counter() - started)
    limit_ms = subject.limits.ms(0, costs.image_operations(subject.config))
    more = f"first {1000 * seconds[0]:.1f} ms, {slices} slices"
    run.figure("image", "four tiles", 1000 * statistics.median(seconds[1:]), limit_ms, more)


def first_token(subject: Subject) -> None:
    """Through the whole engine in process, one request after the other."""
    run, config = subject.run, subject.config
    tokens = SMOKE_PROMPT if run.is_smoke else PROMPT
    found, core = [], subject.core()
    for number in range(SMOKE_COUNT if run.is_smoke else COUNT):
        with shared_noise(config.vision.tile_size, [(b"question %d" % number, 2, 2)]) as shared:
            request = EngineRequest(
                id=number + 1,
                tokens=tuple(range(10 + number, 10 + number + tokens)),
                max_tokens=1,
                sampling=GREEDY,
                images=shared.inputs,
                image_positions=(2,),
            )
            found.append(run_requests(core, [request], 1).first_token_ms)
    core.check()
    operations = costs.image_operations(config) + costs.prefill_operations(config, tokens, 0)
    case = f"four tiles, a prompt of {tokens}"
    run.figure("first token about an image", case, statistics.median(found[1:]), subject.limits.ms(0, operations))
