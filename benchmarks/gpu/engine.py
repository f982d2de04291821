"""A stage of the check: the whole engine in this process, with its scheduler, caches and sampler."""

from functools import partial

import torch

from engine_load import run_requests
from harness import TOP_P, shared_noise
from load import Summary
from spyglass_server.engine.messages import EngineRequest
from stage_run import StageRun
from subject import Subject

LOADS = ((1, 512, 64, 0), (32, 512, 128, 0), (64, 512, 128, 0), (16, 256, 64, 8))
"""Requests at once, tokens of a prompt, tokens of an answer, and how many requests have an image. Those without are
served by the whole server, too, in the stage for that."""
SMOKE_LOADS = ((2, 20, 4, 1),)


def run(run: StageRun) -> None:
    """Runs the stage."""
    loads = SMOKE_LOADS if run.is_smoke else LOADS
    subject = Subject(run, 2 * max(load[0] * (load[1] + load[2]) for load in loads), max(load[3] for load in loads))
    for together, prompt, answer, num_images in loads:
        run.case(f"{together} at once", partial(load, subject, together, prompt, answer, num_images))


def load(subject: Subject, together: int, prompt: int, answer: int, num_images: int) -> None:
    """So many requests at once, and as many before them that are not counted."""
    for seed in (0,) if subject.run.is_smoke else (0, 1):
        summary = requests(subject, together, prompt, answer, num_images, seed)
    limit_ms = subject.decode_limit_ms(together * (prompt + answer // 2), num_images)
    subject.run.load("engine", summary, limit_ms, together=together, num_images=num_images)


def requests(subject: Subject, together: int, prompt: int, answer: int, num_images: int, seed: int) -> Summary:
    """Runs requests that no other seed makes, all at once."""
    core = subject.core()
    vocabulary = min(1000, subject.config.text.vocab_size)
    generator = torch.Generator().manual_seed(1000 * together + seed)
    images = [(b"engine %d %d" % (seed, i), 2, 2) for i in range(num_images)]
    with shared_noise(subject.config.vision.tile_size, images) as shared:
        found = run_requests(
            core,
            [
                EngineRequest(
                    id=i + 1,
                    tokens=tuple(torch.randint(10, vocabulary, (prompt,), generator=generator).tolist()),
                    max_tokens=answer,
                    sampling=TOP_P,
                    images=shared.inputs[i : i + 1],
                    image_positions=(2,) if i < num_images else (),
                )
                for i in range(together)
            ],
            together,
        )
    core.check()
    return found
