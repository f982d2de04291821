"""A closed loop of requests against an engine in this process. Knows nothing about its model."""

import time
from collections.abc import Sequence

from load import Sample, Summary, summarize
from spyglass_server.engine.messages import EngineRequest, RequestFailed, TokenOutput
from spyglass_server.engine.worker.core import EngineCore


def run_requests(core: EngineCore, requests: Sequence[EngineRequest], concurrency: int) -> Summary:
    """Runs requests with one choice each, `concurrency` at once: each answer is followed by the next request.

    Raises:
        RuntimeError: a request failed.
    """
    return summarize(*answer_requests(core, requests, concurrency))


def answer_requests(
    core: EngineCore, requests: Sequence[EngineRequest], concurrency: int
) -> tuple[list[Sample], float]:
    """The same; returns each answer's tokens, in the order of the requests, and the total time in seconds.

    Raises:
        RuntimeError: a request failed.
    """
    waiting = list(reversed(requests))
    samples: dict[int, Sample] = {}
    num_running, num_done = 0, 0
    started = time.perf_counter()
    while num_done < len(requests):
        while waiting and num_running < concurrency:
            request = waiting.pop()
            samples[request.id] = Sample(started=time.perf_counter(), prompt_tokens=len(request.tokens))
            _check(core.submit(request))
            num_running += 1
        events = core.step()
        _check(events)
        for event in events:
            if isinstance(event, TokenOutput):
                samples[event.id].pieces.append(time.perf_counter())
                samples[event.id].tokens += 1
                samples[event.id].token_ids.append(event.token)
                if event.finish is not None:
                    num_running, num_done = num_running - 1, num_done + 1
    return list(samples.values()), time.perf_counter() - started


def _check(events: Sequence[object]) -> None:
    for event in events:
        if isinstance(event, RequestFailed):
            raise RuntimeError(event.detail)
