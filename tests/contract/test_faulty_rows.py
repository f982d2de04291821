"""F2 and F3: a row that fails, and memory that runs out. The engine's runner fails; all else is as users run it."""

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from both import run_both
from checkpoints import byte_tokenizer
from contract.doors import CHAT, about_images, assert_clean, chat_body
from contract.faulty_engine import FaultyLoader, When
from fakes import KEY, TestServer, auth
from pictures import data_uri, noise
from spyglass.v1 import inference_pb2 as pb
from spyglass_server.config import EngineConfig
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.settings import SETTINGS

NUM_ROWS = 16
MARK = "~"
NUM_TOKENS = 60


@contextlib.asynccontextmanager
async def running(folder: Path, data_dir: Path, when: When, out_of_memory: bool) -> "AsyncIterator[Asker]":
    """A server with the fault, and a bridge in front of it."""
    settings = EngineConfig.from_options(Namespace(**{setting.dest: setting.default for setting in SETTINGS}))
    [mark] = byte_tokenizer().encode(MARK, add_special_tokens=False).ids
    inner = CheckpointLoader(folder=folder, settings=settings)
    loader = FaultyLoader(inner=inner, mark=mark, when=when, out_of_memory=out_of_memory)
    async with run_both(folder, data_dir, loader, server={"served_model_name": ("tiny",)}) as both:
        yield Asker(both.server, both.http)


class Asker:
    """Asks over HTTP, and looks at the usage."""

    def __init__(self, server: TestServer, http: aiohttp.ClientSession) -> None:
        self._server = server
        self._http = http

    async def ask(self, content: Any) -> tuple[int, str]:
        """The status and the text of an answer, or of the error."""
        async with self._http.post(CHAT, json=chat_body(content, max_tokens=NUM_TOKENS)) as response:
            assert_clean(await response.text())
            answer = await response.json()
            error = answer.get("error")
            return response.status, error["code"] if error else answer["choices"][0]["message"]["content"]

    async def outcomes(self) -> list[str]:
        """How the generations ended, by the records."""
        usage = await self._server.stub.GetUsage(pb.GetUsageRequest(max_records=1000), metadata=auth(KEY))
        return sorted(record.outcome for record in usage.records)


def question(number: int) -> str:
    return f"Tell me all about {number}."


@pytest.mark.parametrize("when", [When.PREFILL, When.LATE], ids=lambda when: when.value)
async def test_f02_an_exception_for_one_row(endless_folder: Path, tmp_path: Path, when: When) -> None:
    async with running(endless_folder, tmp_path, when, out_of_memory=False) as asker:
        alone = [await asker.ask(question(number)) for number in range(NUM_ROWS - 1)]
        *together, bad = await asyncio.gather(
            *(asker.ask(question(number)) for number in range(NUM_ROWS - 1)), asker.ask(question(99) + MARK)
        )
        assert together == alone
        assert {status for status, _ in together} == {200}
        assert bad == (500, "internal_error")
        assert await asker.ask(question(0)) == alone[0]
        assert await asker.outcomes() == ["INTERNAL"] + ["OK"] * (2 * NUM_ROWS - 1)


@pytest.mark.parametrize("when", [When.PREFILL, When.FIRST_PREFILL, When.IMAGE], ids=lambda when: when.value)
async def test_f03_out_of_memory_in_a_prefill(endless_folder: Path, tmp_path: Path, when: When) -> None:
    """At most the request that needs too much fails; none, where another try succeeds."""
    async with running(endless_folder, tmp_path, when, out_of_memory=True) as asker:
        alone = [await asker.ask(question(number)) for number in range(4)]
        content = about_images(data_uri(noise((40, 40)))) if when is When.IMAGE else question(99) + MARK
        *together, bad = await asyncio.gather(*(asker.ask(question(number)) for number in range(4)), asker.ask(content))
        assert together == alone
        assert bad[0] == (200 if when is When.FIRST_PREFILL else 500), bad
        async with asyncio.timeout(10):
            assert await asker.ask(question(0)) == alone[0]
        failed = [] if when is When.FIRST_PREFILL else ["INTERNAL"]
        assert await asker.outcomes() == failed + ["OK"] * (10 - len(failed))
