"""OpenVINO GenAI in a process of its own: `openvino_child.py MODEL THREADS`, in the peers' environment.

Says "ready" once the model is loaded. A line of JSON on stdin is then a load, and a line on stdout tells what came of
it, until stdin ends. Times are seconds since the load began. Imports nothing of this repository, which that environment
does not have.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on CPUs with units for it,
    "KV_CACHE_PRECISION": "f32",  # and 8 bits for keys and values
    "ENABLE_CPU_PINNING": False,  # the default costs it up to a third where others use the machine, too
}
_CACHE_GB = 1
_STEP_TOKENS = 512


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer: when it was asked for, its tokens, and when each came."""

    started: float
    tokens: list[int] = field(default_factory=list)
    pieces: list[float] = field(default_factory=list)


def load(model: str, num_threads: int) -> Any:
    """The pipeline, in float32 throughout."""
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = _CACHE_GB
    scheduling.max_num_batched_tokens = _STEP_TOKENS
    scheduling.enable_prefix_caching = False
    settings = _SETTINGS | {"INFERENCE_NUM_THREADS": num_threads}
    return genai.ContinuousBatchingPipeline(model, scheduling, "CPU", settings)


def answer(
    pipeline: Any, prompts: Sequence[Sequence[int]], concurrency: int, max_tokens: int, stop_token_ids: Sequence[int]
) -> dict[str, Any]:
    """Answers prompts, so many at once: each answer is followed by the next prompt."""
    config = genai.GenerationConfig()
    config.do_sample = False
    config.max_new_tokens = max_tokens
    config.stop_token_ids = set(stop_token_ids)
    answers: list[Answer] = []
    running: dict[int, Any] = {}
    began = time.perf_counter()
    while running or len(answers) < len(prompts):
        while len(answers) < len(prompts) and len(running) < concurrency:
            tokens = ov.Tensor(np.array([prompts[len(answers)]], dtype=np.int64))
            running[len(answers)] = pipeline.add_request(len(answers), tokens, config)
            answers.append(Answer(started=time.perf_counter() - began))
        pipeline.step()
        now = time.perf_counter() - began
        for index, handle in list(running.items()):
            if handle.can_read():
                [output] = handle.read().values()
                answers[index].tokens += output.generated_ids
                answers[index].pieces += [now] * len(output.generated_ids)
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                del running[index]
    return {"duration_s": time.perf_counter() - began, "answers": [asdict(one) for one in answers]}


def main(arguments: Sequence[str]) -> int:
    """Runs the script."""
    model, num_threads = arguments
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no reply
    pipeline = load(model, int(num_threads))
    print("ready", file=replies)
    for line in sys.stdin:
        print(json.dumps(answer(pipeline, **json.loads(line))), file=replies)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
