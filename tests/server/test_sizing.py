"""From a device's memory to the caches of an engine: a stand-in has memory of its own, and the CPU does its work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineInfo, EngineRequest, SamplingParams, TokenOutput
from spyglass_server.engine.worker.batch import Row, RowOutput
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.planning.memory import CacheUnits
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.launch import PAGE_SIZE, CheckpointLoader
from spyglass_server.runtime.probe import PROBES
from spyglass_server.runtime.runner import ModelRunner
from spyglass_server.runtime.sizing import cache_units
from spyglass_server.runtime.weights import count_parameters, empty_model


@dataclass
class StandIn:
    """A device with memory.

    Of it `weights` are taken when they are loaded, `caches` and `kept` more by the runner of the profile run, and
    `peaks` by its work.
    """

    total: int
    weights: int
    kept: int = 0
    peaks: tuple[int, ...] = (0, 0)
    name: str = "Stand-in 1"
    caches: int = 0
    peaks_taken: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)

    def held(self) -> int:
        return 1000

    def allocated(self) -> int:
        """Weights, until the runner of the profile run is there."""
        self._asked += 1
        return self.weights if self._asked < 3 else self.weights + self.caches + self.kept

    def peak_of(self, work: Callable[[], None]) -> int:
        work()
        self.peaks_taken += 1
        return self.peaks[self.peaks_taken - 1]

    def release(self) -> None:
        pass


@pytest.fixture
def loader(tiny_checkpoint: Path) -> CheckpointLoader:
    return CheckpointLoader(
        folder=tiny_checkpoint,
        settings=EngineConfig(
            load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
            gpu_memory_utilization=0.5, cache_bytes=None, image_cache_bytes=None, tensor_parallel_size=1,
            max_batch=8, max_step_tokens=64,
            max_chunk_tokens=8,
        ),
    )  # fmt: skip


@pytest.fixture
def units(loader: CheckpointLoader) -> CacheUnits:
    return cache_units(load_config(loader.folder), torch.float32, PAGE_SIZE)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Row]]:
    """The rows of all steps."""
    found: list[Sequence[Row]] = []
    execute = ModelRunner.execute

    def spied(self: ModelRunner, rows: Sequence[Row]) -> list[RowOutput]:
        found.append(rows)
        return execute(self, rows)

    monkeypatch.setattr(ModelRunner, "execute", spied)
    return found


def load(loader: CheckpointLoader, device: StandIn, **settings: Any) -> tuple[EngineCore, EngineInfo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBES, "cpu", lambda _: device)
        return replace(loader, settings=replace(loader.settings, **settings)).load()


def answer(core: EngineCore) -> list[int]:
    core.submit(EngineRequest(id=1, tokens=tuple(range(5, 25)), max_tokens=8, sampling=SamplingParams(temperature=0.0)))
    events = [event for _ in range(20) for event in core.step()]
    return [event.token for event in events if isinstance(event, TokenOutput)]


def test_caches_take_what_weights_and_the_largest_step_leave(
    loader: CheckpointLoader, units: CacheUnits, executed: list[Sequence[Row]]
) -> None:
    profiled = units.image_bytes + 6 * units.page_bytes
    device = StandIn(total=80_000_000, weights=2_000_000, kept=300_000, peaks=(400_000, 500_000), caches=profiled)
    core, info = load(loader, device)
    free = 40_000_000 - 1000 - 2_000_000 - 300_000 - 400_000 - 500_000
    tiles = min(free // 3, 8 * units.image_bytes) // units.tile_bytes
    pages = (free - tiles * units.tile_bytes) // units.page_bytes
    memory = info.memory
    assert (memory.device_name, memory.device_bytes) == ("Stand-in 1", 80_000_000)
    assert (memory.image_cache_tiles, memory.image_cache_bytes) == (tiles, tiles * units.tile_bytes)
    assert (memory.kv_cache_tokens, memory.kv_cache_bytes) == (pages * PAGE_SIZE, pages * units.page_bytes)
    assert info.max_image_tiles == tiles
    assert info.max_tokens == 4096
    [step] = executed
    assert (len(step), sum(len(row.tokens) for row in step), step[0].end) == (8, 64, 4096)
    assert len(step[0].image_tiles[0]) == 4
    assert answer(core) == answer(loader.load()[0])  # as on a CPU


def test_a_short_context_is_profiled_with_more_rows(loader: CheckpointLoader, executed: list[Sequence[Row]]) -> None:
    load(loader, StandIn(total=80_000_000, weights=2_000_000), max_model_len=20)
    assert [len(row.tokens) for row in executed[0]] == [20, 20, 19, 1, 1, 1, 1, 1]


def test_without_a_setting_the_device_says_how_long_a_step_is(
    loader: CheckpointLoader, executed: list[Sequence[Row]]
) -> None:
    load(loader, StandIn(total=80_000_000, weights=2_000_000), max_step_tokens=None)
    assert sum(len(row.tokens) for row in executed[0]) == 512
    load(loader, StandIn(total=80_000_000, weights=2_000_000), max_step_tokens=None, max_batch=600)
    assert [len(row.tokens) for row in executed[1]] == [1] * 600


def test_where_both_caches_are_set_the_largest_step_is_tried_nevertheless(
    loader: CheckpointLoader, units: CacheUnits, executed: list[Sequence[Row]]
) -> None:
    """It finds out whether it fits, and compiles the kernels."""
    device = StandIn(total=80_000_000, weights=2_000_000)
    _, info = load(loader, device, cache_bytes=5_000_000, image_cache_bytes=4_000_000)
    assert executed
    assert device.peaks_taken
    assert info.memory.kv_cache_tokens == 5_000_000 // units.page_bytes * PAGE_SIZE
    assert info.max_image_tiles == 4_000_000 // units.tile_bytes


def test_the_weights_that_are_loaded_are_told(loader: CheckpointLoader) -> None:
    size = (loader.folder / "model.safetensors").stat().st_size
    settings = replace(loader.settings, cache_bytes=8 << 20, image_cache_bytes=8 << 20)
    infos = [
        replace(loader, settings=replace(settings, quantization=quantization)).load()[1]
        for quantization in ("none", "int8")
    ]
    plain, small = (info.memory.weight_bytes for info in infos)
    assert plain == pytest.approx(size, rel=0.05)
    count = count_parameters(empty_model(load_config(loader.folder)))
    assert (plain, small) == (count.nbytes(4, "none"), count.nbytes(4, "int8"))
    assert small < plain
    assert infos[0].memory.device_bytes > 1 << 30


def test_weights_that_cannot_fit_are_refused_before_they_are_read(loader: CheckpointLoader, tmp_path: Path) -> None:
    for path in loader.folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"float32, but Stand-in 1 has 2 MB.*0\.5 allows 1 MB"):
        load(replace(loader, folder=tmp_path), StandIn(total=2_000_000, weights=0))
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):  # with room enough, it is read
        load(replace(loader, folder=tmp_path), StandIn(total=80_000_000, weights=0))


def test_a_machine_without_memory_for_the_weights_is_told_so(
    loader: CheckpointLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spyglass_server.runtime.sizing.host_bytes", lambda: 1_000_000)
    with pytest.raises(
        ValueError, match=r"the weights take .* in float32, but cpu has 1 MB; --quantization int8 needs"
    ):
        loader.load()
