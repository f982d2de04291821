"""Stands in for OpenVINO GenAI: each step repeats the next token of every prompt, up to a stop token or the limit."""

import sys
from collections.abc import Mapping
from enum import Enum, auto
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt


class GenerationStatus(Enum):
    RUNNING = auto()
    FINISHED = auto()


class SchedulerConfig(SimpleNamespace):
    pass


class GenerationConfig(SimpleNamespace):
    do_sample: bool
    max_new_tokens: int
    stop_token_ids: set[int]


class GenerationHandle:
    def __init__(self, prompt: list[int], config: GenerationConfig) -> None:
        assert not config.do_sample
        stops = [i + 1 for i, token in enumerate(prompt) if token in config.stop_token_ids]
        self._tokens = prompt[: min([config.max_new_tokens, *stops])]
        self._unread: list[int] = []

    def step(self) -> None:
        if self._tokens:
            self._unread.append(self._tokens.pop(0))

    def can_read(self) -> bool:
        return bool(self._unread)

    def read(self) -> dict[int, SimpleNamespace]:
        read, self._unread = self._unread, []
        return {0: SimpleNamespace(generated_ids=read)}

    def get_status(self) -> GenerationStatus:
        return GenerationStatus.RUNNING if self._tokens else GenerationStatus.FINISHED


class ContinuousBatchingPipeline:
    def __init__(self, model: str, scheduling: SchedulerConfig, device: str, settings: Mapping[str, object]) -> None:
        sys.stdout.write("a library's own words, which are no reply\n")
        assert device == "CPU"
        assert settings["INFERENCE_PRECISION_HINT"] == settings["KV_CACHE_PRECISION"] == "f32"
        self._handles: list[GenerationHandle] = []

    def add_request(self, number: int, tokens: npt.NDArray[np.int64], config: GenerationConfig) -> GenerationHandle:
        self._handles.append(GenerationHandle(tokens[0].tolist(), config))
        return self._handles[-1]

    def step(self) -> None:
        for handle in self._handles:
            handle.step()
