"""The contestants of the throughput comparison that need no installation: starts, asks and stops each.

Owns how each is started, on the same weights. Knows nothing about tables.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
import torch

from askers import Chat, GrpcAsker, HttpAsker
from engine_load import answer_requests
from load import Sample, Summary, closed_loop, summarize
from plain_model import plain_model
from processes import MODEL, Spyglass
from spyglass_client import AsyncClient
from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineRequest, SamplingParams
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput
from spyglass_server.runtime.launch import CheckpointLoader

_WORDS = ("red", "blue", "green", "old", "new", "small", "large", "kind", "wise", "quiet", "loud", "warm", "cold")
_HEROES = ("king", "fox", "teacher", "river", "ship", "dragon", "farmer", "doctor", "girl", "robot", "bear", "cat")


class Contestant(Protocol):
    """Answers chats, with a limit on their tokens and on the number at once."""

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        """Asks all chats and returns when all are answered."""
        ...


class OverHttp:
    """An OpenAI-compatible server: ours, or any that is already running."""

    def __init__(self, url: str, key: str = "none", model: str = MODEL) -> None:
        self._url, self._key, self._model = url, key, model

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            asker = HttpAsker(session, self._url, self._key, self._model, max_tokens)
            return await closed_loop(asker, chats, concurrency)


class OverGrpc:
    """Spyglass's server without the bridge."""

    def __init__(self, spyglass: Spyglass) -> None:
        self._spyglass = spyglass

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        async with AsyncClient(self._spyglass.grpc, api_key=self._spyglass.key) as client:
            return await closed_loop(GrpcAsker(client, MODEL, max_tokens), chats, concurrency)


def load_engine(folder: Path, maker: PromptMaker, speculation: str = "auto") -> EngineCore:
    """Loads the engine in this process."""
    config = EngineConfig(
        load_format="auto",
        dtype="float32",
        quantization="none",
        device="cpu",
        max_model_len=None,
        gpu_memory_utilization=0.9,
        cache_bytes=1 << 30,
        image_cache_bytes=1 << 28,
        tensor_parallel_size=1,
        speculation=speculation,
        max_batch=64,
        max_step_tokens=512,
        max_chunk_tokens=None,
    )
    loader = CheckpointLoader(folder=folder, settings=config)
    core, _ = loader.load()
    return core


class InProcess:
    """Our engine alone: scheduler, caches, model and sampler, without detokenizing."""

    def __init__(self, folder: Path) -> None:
        self._maker = PromptMaker(folder, max_image_pixels=1)
        self._core = load_engine(folder, self._maker)
        self._ids = iter(range(1, 10**9))

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        return summarize(*self.answer(chats, concurrency, max_tokens))

    def answer(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> tuple[list[Sample], float]:
        """Returns the answers with their tokens, and the total time in seconds."""
        requests = [
            EngineRequest(
                id=next(self._ids),
                tokens=tuple(prompt_ids(self._maker, chat)),
                max_tokens=max_tokens,
                stop_token_ids=self._maker.stop_token_ids,
                sampling=SamplingParams(temperature=0.0),
            )
            for chat in chats
        ]
        return answer_requests(self._core, requests, concurrency)


class Transformers:
    """transformers' `generate` on the plain text model, in static batches as large as the concurrency."""

    def __init__(self, folder: Path) -> None:
        self._model = plain_model(folder)
        self._maker = PromptMaker(folder, max_image_pixels=1)

    async def run(self, chats: Sequence[Chat], concurrency: int, max_tokens: int) -> Summary:
        prompts = [prompt_ids(self._maker, chat) for chat in chats]
        samples: list[Sample] = []
        started = time.perf_counter()
        for first in range(0, len(prompts), concurrency):
            samples += self._batch(prompts[first : first + concurrency], max_tokens)
        return summarize(samples, time.perf_counter() - started)

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[list[int]], max_tokens: int) -> list[Sample]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        started = time.perf_counter()
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0,
            eos_token_id=sorted(self._maker.stop_token_ids),
        )  # fmt: skip
        ended = time.perf_counter()
        samples = []
        for prompt, row in zip(prompts, out[:, longest:].tolist(), strict=True):
            stops = [i for i, token in enumerate(row) if token in self._maker.stop_token_ids]
            tokens = stops[0] + 1 if stops else len(row)
            samples.append(Sample(started=started, pieces=[ended], prompt_tokens=len(prompt), tokens=tokens))
        return samples


def prompt_ids(maker: PromptMaker, chat: Chat) -> list[int]:
    """Returns the prompt that Spyglass makes from a chat."""
    system, question = chat
    return list(maker.prepare(ChatInput((Message("system", (system,)), Message("user", (question,))))).tokens)


def make_chats(maker: PromptMaker, count: int, prompt_tokens: int, seed: int) -> list[Chat]:
    """Makes chats of exactly `prompt_tokens` tokens with different beginnings that ask for long answers."""
    rng = random.Random(seed)
    chats: list[Chat] = []
    while len(chats) < count:
        question = f"Tell me a long story about a {rng.choice(_HEROES)}, with many details."
        words: list[str] = []
        while len(prompt_ids(maker, (" ".join(words), question))) < prompt_tokens:
            words.append(rng.choice(_WORDS))
        chat = (" ".join(words), question)
        if len(prompt_ids(maker, chat)) == prompt_tokens:
            chats.append(chat)
    return chats
