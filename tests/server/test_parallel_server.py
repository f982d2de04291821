"""The whole server with a model over several ranks: the same answers as with one, and no rank is lost unnoticed."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from checkpoints import demo_checkpoint, random_checkpoint
from fakes import KEY, TestServer, run_test_server
from pictures import encoded, noise
from random_weights import Sizes
from spyglass_client import Answer, AsyncClient, SpyglassError
from spyglass_server.config import EngineConfig
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.runner import ModelRunner
from stack import free_ports, is_engine

EIGHT_HEADS = Sizes(hidden_size=128, num_heads=8, num_kv_heads=4)
SETTINGS = {"image_cache_bytes": 8 << 20, "max_batch": 8, "max_step_tokens": 64}
FEW_TOKENS, MANY_TOKENS = 1 << 18, 32 << 20
"""Of cache, in bytes over all ranks."""
NUM_STREAMS = 8
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.5, "seed": 6},
    {"temperature": 1.0, "seed": 7, "json_schema": SCHEMA},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("parallel") / "model", sizes=EIGHT_HEADS)


def started_by(parent: int | None, what: bytes = b"parallel.follower") -> list[int]:
    """The followers among the processes that a process has started, or what else their command says."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            starter = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if starter == parent and what in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def answers(client: AsyncClient, max_tokens: int = 24) -> list[str]:
    """Of sixteen requests at once, of several kinds, some with one beginning, beside streams that are cancelled."""

    async def cancelled() -> None:
        stream = client.stream("Never mind", max_tokens=60, min_tokens=60)
        async for _ in stream:
            break
        stream.cancel()

    async with asyncio.TaskGroup() as group:
        texts = [
            group.create_task(client.generate(prompt, images=images, max_tokens=max_tokens, **way))
            for way in WAYS
            for prompt in ("What is it?", "What is it? Say more.")
            for images in ([], [encoded(noise((60, 40)))])
        ]
        for _ in range(3):
            group.create_task(cancelled())
    return [text.result().text for text in texts]


def client_of(server: TestServer) -> AsyncClient:
    return AsyncClient(server.server.address, api_key=KEY)


@pytest.mark.parametrize("num_ranks", [2, 4])
async def test_answers_are_those_of_one_rank(folder: Path, tmp_path: Path, num_ranks: int) -> None:
    """There are more tokens than there are pages for, so that some requests are preempted."""
    settings = SETTINGS | {"cache_bytes": FEW_TOKENS}
    async with run_test_server(folder, tmp_path / "one", **settings) as one, client_of(one) as client:
        expected = await answers(client)
        assert len({*expected}) > 8
    settings |= {"cache_bytes": FEW_TOKENS // num_ranks, "tensor_parallel_size": num_ranks}
    async with run_test_server(folder, tmp_path / "many", **settings) as server, client_of(server) as client:
        assert await answers(client) == expected
        assert await answers(client) == expected  # from what is cached
        assert len(started_by(server.server.engine.pid)) == num_ranks - 1
        (model,) = await client.models()
        assert len(model.ranks) == num_ranks
        assert model.memory == model.ranks[0]
        assert {rank.host for rank in model.ranks} == {os.uname().nodename}
        assert sum(rank.weight_bytes for rank in model.ranks) < 1.3 * num_ranks * model.memory.weight_bytes


async def test_the_demo_model_answers_over_three_ranks_as_over_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_model_len": 512, "cache_bytes": 128 << 20, "image_cache_bytes": 32 << 20}
    found = []
    for num_ranks in (1, 3):
        folder = demo_checkpoint()
        ranks = settings | {"tensor_parallel_size": num_ranks}
        async with run_test_server(folder, tmp_path / str(num_ranks), **ranks) as server, client_of(server) as client:
            found.append(await answers(client, max_tokens=8))
    assert found[0] == found[1]


# --- lost ranks ------------------------------------------------------------------------------------


def out_of_memory(pid: int) -> None:
    """The process gets no memory any more."""
    used = int(re.findall(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0])
    resource.prlimit(pid, resource.RLIMIT_AS, (used << 10, used << 10))


LOSSES: dict[str, tuple[Callable[[int], None], float]] = {
    "killed": (lambda pid: os.kill(pid, signal.SIGKILL), 2),
    "stopped": (lambda pid: os.kill(pid, signal.SIGSTOP), 12),
    "out of memory": (out_of_memory, 12),
    "fails": (lambda pid: os.kill(pid, signal.SIGUSR1), 2),
}
"""What happens to a follower, and within how many seconds all streams must know."""


async def until_ready(client: AsyncClient, deadline: float) -> Answer:
    """The first answer that the server gives again."""
    while True:
        with contextlib.suppress(SpyglassError):
            return await client.generate("Hello", max_tokens=3)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def assert_lost_and_found(
    client: AsyncClient, follower: int, lose: Callable[[int], None], within_s: float
) -> None:
    """All streams end with an error when a follower is lost, and soon all is as before."""

    async def stream(started: asyncio.Event) -> tuple[float, SpyglassError]:
        """Its error, and when that came."""
        generation = client.stream("Go on", max_tokens=3000, min_tokens=3000, temperature=1.0)
        try:
            async for _ in generation:
                started.set()
        except SpyglassError as error:
            return time.monotonic(), error
        raise AssertionError("the stream has ended by itself")

    started = [asyncio.Event() for _ in range(NUM_STREAMS)]
    streams = [asyncio.create_task(stream(one)) for one in started]
    await asyncio.gather(*(one.wait() for one in started))
    lose(follower)
    lost = time.monotonic()
    ended = await asyncio.gather(*streams)
    assert {error.code for _, error in ended} == {grpc.StatusCode.UNAVAILABLE}
    assert max(when for when, _ in ended) - lost < within_s
    answer = await until_ready(client, lost + within_s + 20)
    assert answer.usage.completion_tokens == 3
    assert not is_there(follower)


class FailingLoader(CheckpointLoader):
    """Its followers fail in the step after SIGUSR1, alone."""

    def load_rank(self, *args: Any) -> Any:
        runner, group = super().load_rank(*args)

        def fail(*_: object) -> None:
            raise RuntimeError("this rank fails alone")

        signal.signal(signal.SIGUSR1, lambda *_: setattr(ModelRunner, "follow", fail))
        return runner, group


@pytest.mark.parametrize("way", LOSSES)
async def test_a_rank_that_is_lost_ends_the_streams_and_all_comes_back(
    folder: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    settings = {"cache_bytes": MANY_TOKENS, "tensor_parallel_size": 2} | SETTINGS
    loader = None
    if way == "fails":
        loader = FailingLoader(folder=folder, settings=engine_settings(**settings))
    async with run_test_server(folder, tmp_path, loader, **settings) as server, client_of(server) as client:
        (follower,) = started_by(server.server.engine.pid)
        await assert_lost_and_found(client, follower, *LOSSES[way])


# --- what is refused -------------------------------------------------------------------------------


def engine_settings(**given: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "load_format": "auto",
        "dtype": "auto",
        "quantization": "none",
        "device": "cpu",
        "max_model_len": None,
        "gpu_memory_utilization": 0.9,
        "max_chunk_tokens": None,
    }
    return EngineConfig(**(settings | SETTINGS | {"cache_bytes": MANY_TOKENS} | given))


def test_what_cannot_be_divided_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot be divided among 5 ranks"):
        CheckpointLoader(folder=folder, settings=engine_settings(tensor_parallel_size=5)).load()


class HalfBlindLoader(CheckpointLoader):
    """Its followers see another folder."""

    def load_rank(self, *args: Any) -> Any:
        other = CheckpointLoader(folder=self.folder.with_name("other"), settings=self.settings)
        return other.load_rank(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "rank 1 on .*config.json"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "rank 1 .*model-00002-of-00003"),
        (lambda folder: change_config(folder), "rank 1 has another config.json"),
        (lambda folder: cut_short(folder / "model-00003-of-00003.safetensors"), "rank 1 on .* damaged"),
    ],
    ids=["no checkpoint", "a file is missing", "another model", "a damaged file"],
)
def test_what_is_wrong_with_the_files_of_one_rank_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    folder = random_checkpoint(tmp_path / "model", sizes=EIGHT_HEADS, num_shards=3)
    shutil.copytree(folder, tmp_path / "other")
    change(tmp_path / "other")
    with pytest.raises(ValueError, match=message) as found:
        HalfBlindLoader(folder=folder, settings=engine_settings(tensor_parallel_size=2)).load()
    assert "\n" not in str(found.value)


def change_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text() + " ")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


# --- several machines ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machines:
    """Two groups of processes, as torchrun starts them on two machines."""

    address: str
    groups: list["subprocess.Popen[bytes]"]

    @property
    def engine(self) -> int:
        (server,) = started_by(self.groups[0].pid, b"spyglass_server")
        [engine] = filter(is_engine, started_by(server, b"spawn_main"))
        return engine

    @property
    def follower(self) -> int:
        (keeper,) = started_by(self.groups[1].pid, b"spyglass_server")
        (follower,) = started_by(keeper)
        return follower


@contextlib.contextmanager
def two_machines(folder: Path, tmp_path: Path, *second: str) -> Iterator[Machines]:
    """A server of two ranks, of which the second has settings of its own."""
    meeting, port = free_ports(2)
    options = [
        "--grpc", f"127.0.0.1:{port}", "--model", str(folder), "--api-key", KEY, "--tensor-parallel-size", "2",
        "--cache-bytes", str(MANY_TOKENS), "--image-cache-bytes", str(8 << 20), "--max-batch", "8", "--device", "cpu",
    ]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SPYGLASS_")}
    environ |= {"PYTHONPATH": os.pathsep.join(map(str, sys.path)), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    groups = []
    for rank, more in enumerate(((), second)):
        launch = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank),
            "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(meeting),
            "-m", "spyglass_server", *options, "--data-dir", str(tmp_path / str(rank)), *more,
        ]  # fmt: skip
        with (tmp_path / f"{rank}.log").open("wb") as log:
            groups.append(subprocess.Popen(launch, env=environ, stderr=log))
    try:
        yield Machines(f"127.0.0.1:{port}", groups)
    finally:
        for group in groups:
            group.terminate()
        for group in groups:
            group.wait(30)


async def test_several_machines_serve_one_model(folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"cache_bytes": MANY_TOKENS}
    async with run_test_server(folder, tmp_path / "alone", **settings) as alone, client_of(alone) as client:
        expected = await answers(client)
    with two_machines(folder, tmp_path) as machines:
        async with AsyncClient(machines.address, api_key=KEY) as client:
            await until_ready(client, time.monotonic() + 60)
            assert await answers(client) == expected
            await assert_lost_and_found(client, machines.follower, *LOSSES["killed"])
            assert await answers(client) == expected
            os.kill(machines.engine, signal.SIGKILL)
            await asyncio.sleep(1)
            await until_ready(client, time.monotonic() + 60)
            assert await answers(client) == expected
        follower = machines.follower
        machines.groups[0].terminate()
        for group in machines.groups:
            await asyncio.to_thread(group.wait, 30)
        assert machines.groups[1].returncode == 0
        assert not is_there(follower)


async def test_what_torchrun_has_started_ends_with_it(folder: Path, tmp_path: Path) -> None:
    with two_machines(folder, tmp_path) as machines:
        async with AsyncClient(machines.address, api_key=KEY) as client:
            await until_ready(client, time.monotonic() + 60)
        follower = machines.follower
        machines.groups[1].kill()
        deadline = time.monotonic() + 10
        while is_there(follower):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


def test_other_settings_on_another_machine_are_refused(folder: Path, tmp_path: Path) -> None:
    with two_machines(folder, tmp_path, "--dtype", "bfloat16") as machines:
        assert machines.groups[0].wait(60)
    said = (tmp_path / "0.log").read_text()
    assert "spyglass-server: rank 1 was started with --dtype bfloat16, the first with auto\n" in said


def test_as_many_processes_must_be_started_as_there_are_ranks(folder: Path, tmp_path: Path) -> None:
    with two_machines(folder, tmp_path, "--tensor-parallel-size", "4") as machines:
        assert machines.groups[1].wait(60)
    said = (tmp_path / "1.log").read_text()
    assert "spyglass-server: torchrun has started 2 processes, but --tensor-parallel-size is 4\n" in said
