"""The engine on devices that are no CPU: everything lies there, and what recording cannot do stops nothing.

No device is needed: meta tensors have one but no memory, and recorders are stood in for.
"""

import contextlib
import gc
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineRequest, SamplingParams
from spyglass_server.engine.worker.batch import DeviceLost, Row
from spyglass_server.runtime import graphs as graphs_module
from spyglass_server.runtime import runner as runner_module
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.graphs import Compute, Record, RecordingFailed
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.plan import GraphShape, Planner
from spyglass_server.runtime.runner import ModelRunner

PAGE = 4
META = torch.device("meta")
LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")


@pytest.fixture
def loader(tiny_checkpoint: Path) -> CheckpointLoader:
    return CheckpointLoader(
        folder=tiny_checkpoint,
        settings=EngineConfig(
            load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
            gpu_memory_utilization=0.9, cache_bytes=8 << 20, image_cache_bytes=8 << 20,
            max_batch=8, max_step_tokens=64, max_chunk_tokens=8,
        ),
    )  # fmt: skip


def tensors_of(root: object) -> list[Tensor]:
    """Every tensor that an object holds, however deep: in attributes, containers, closures and generators."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            found[id(one)] = one
        elif isinstance(one, types.FunctionType):
            waiting += [one.__closure__, one.__defaults__, one.__kwdefaults__]  # not its module
        else:
            waiting += gc.get_referents(one)
    return list(found.values())


@pytest.mark.parametrize("quantization", ["none", "fp8", "int8"])
def test_all_that_a_loaded_engine_holds_is_on_its_device(
    loader: CheckpointLoader, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setitem(runner_module._SLICE_OPERATIONS, "meta", 1.0)
    settings = replace(loader.settings, device="meta", quantization=quantization)
    core, info = replace(loader, settings=settings).load()
    assert info.device == "meta"
    tensors = tensors_of(core)
    assert len(tensors) > 100
    assert {str(tensor.device) for tensor in tensors} == {"meta"}


def test_what_a_step_reads_is_on_its_device() -> None:
    planner = Planner(page_size=PAGE, tile_size=6, dtype=torch.float32, device=META)
    prompt = row(tokens=tuple(range(7)), start=3, pages=(4, 5, 9), image_tiles=((0, 1, 5),), image_positions=(2,))
    rows = [prompt, *(replace(prompt, tokens=(1,), pages=tuple(range(i, i + 3))) for i in (10, 20, 30))]
    images = [planner.image_slots(one) for one in rows[1:]]
    plans = planner.batch(rows), planner.decode(rows[1:], images, GraphShape(rows=4, context=16, image=64), 200)
    for plan in plans:
        tensors = tensors_of(plan)
        assert len(tensors) > 5
        assert {str(tensor.device) for tensor in tensors} == {"meta"}


def test_cudnns_attention_which_prepares_for_every_shape_is_off(loader: CheckpointLoader) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    loader.load()
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]


# --- recording -------------------------------------------------------------------------------------


class Recorder:
    """Records by keeping the computation, or fails at it; counts how often it was asked."""

    def __init__(self, *errors: Exception | None) -> None:
        """One error, or none, for each time in turn; then no more."""
        self._errors = list(errors)
        self.asked = 0

    def __call__(self, compute: Compute) -> Compute:
        self.asked += 1
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error
        return compute


@pytest.fixture
def made(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Record | None], ModelRunner]:
    """Makes runners of the same model, with a recorder or without one."""

    def make(record: Record | None) -> ModelRunner:
        monkeypatch.setattr(runner_module, "_RECORDERS", {"cpu": lambda: record} if record else {})
        loaded = load_model(tiny_checkpoint, load_config(tiny_checkpoint), torch.float32, torch.device("cpu"))
        return ModelRunner(loaded, 200, PAGE, 0, torch.float32, torch.device("cpu"))

    return make


def row(**changes: Any) -> Row:
    request = EngineRequest(
        id=0,
        tokens=(),
        max_tokens=1,
        sampling=SamplingParams(temperature=0.0),
        image_positions=changes.pop("image_positions", ()),
    )
    return replace(Row(request=request, tokens=(5,), start=0, pages=(0,), choices=(0,)), **changes)


def answers(runner: ModelRunner, steps: int = 4) -> list[int]:
    """Tokens that steps of one row and of three rows choose, by turns."""
    tokens = []
    for step in range(steps):
        rows = [row(tokens=(7 + i,), pages=(10 * i,)) for i in range(1 + 2 * (step % 2))]
        tokens += [output.tokens[0] for output in runner.execute(rows)]
    return tokens


@pytest.mark.parametrize("recorded", [0, 1], ids=["from the start", "in traffic"])
def test_what_cannot_be_recorded_is_computed_and_logged_once(
    made: Callable[[Record | None], ModelRunner], caplog: pytest.LogCaptureFixture, recorded: int
) -> None:
    recorder = Recorder(*[None] * recorded, RecordingFailed("operation not permitted when stream is capturing"))
    assert answers(made(recorder)) == answers(made(None))
    assert recorder.asked == 1 + recorded  # none at all when the first try fails; a shape that fails is not tried again
    assert caplog.text.count("cannot be recorded") == 1
    assert "stream is capturing" in caplog.text


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), TypeError("a bug"), torch.OutOfMemoryError("CUDA out of memory"), LOST]
)
def test_other_errors_of_the_first_recording_are_passed_on(
    made: Callable[[Record | None], ModelRunner], error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        made(Recorder(error))


class Device:
    """What torch.cuda does in a recording, without a device: it counts calls and raises what it is given."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capture: Exception | None, synchronize: Exception | None
    ) -> None:
        self.is_capturing = False
        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        graph = types.SimpleNamespace(replay=lambda: None)
        self._capture = capture
        stand_ins = {
            "graph_pool_handle": lambda: (0, 0),
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": contextlib.nullcontext,
            "CUDAGraph": lambda: graph,
            "graph": self._graph,
            "synchronize": lambda: raising(synchronize),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    @contextlib.contextmanager
    def _graph(self, *args: object, **options: object) -> Iterator[None]:
        self.is_capturing = True
        try:
            yield
            raising(self._capture)
        finally:
            self.is_capturing = False


def raising(error: Exception | None) -> None:
    if error is not None:
        raise error


NOT_PERMITTED = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")


def test_cudas_recordings_give_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, capture=None, synchronize=None)
    assert torch.equal(graphs_module.record_cuda()(lambda: torch.ones(3))(), torch.ones(3))


@pytest.mark.parametrize("error", [NOT_PERMITTED, torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuBLAS")])
def test_what_fails_in_cudas_recording_only_is_of_the_recording(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Device(monkeypatch, capture=error, synchronize=None)
    with pytest.raises(RecordingFailed, match=str(error)):
        graphs_module.record_cuda()(lambda: torch.ones(3))


def test_a_device_that_is_lost_while_cuda_records_is_no_matter_of_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, capture=RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), synchronize=LOST)
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        graphs_module.record_cuda()(lambda: torch.ones(3))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory"), LOST])
def test_what_fails_before_cuda_records_is_no_matter_of_recording(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def compute() -> Tensor:
        raise error

    Device(monkeypatch, capture=None, synchronize=None)
    with pytest.raises(type(error), match=str(error)):
        graphs_module.record_cuda()(compute)


# --- lost devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [True, False])
def test_after_any_error_the_device_is_asked_whether_it_is_lost(
    made: Callable[[Record | None], ModelRunner], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Libraries report a lost device as plain RuntimeErrors, as they do a bad batch."""

    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")

    runner = made(None)
    monkeypatch.setattr(torch.nn.functional, "silu", fail)
    monkeypatch.setattr(runner_module, "_PROBES", {"cpu": lambda device: raising(LOST if lost else None)})
    expected = pytest.raises(DeviceLost) if lost else pytest.raises(RuntimeError)
    with expected as caught:
        runner.execute([row()])
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in str(caught.value)
