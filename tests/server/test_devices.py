"""The engine on devices that are no CPU: everything lies there, and what recording cannot do stops nothing.

No device is needed: meta tensors have one but no memory, and recorders are stood in for.
"""

import contextlib
import gc
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grammars import Allows
from pictures import noise
from simulated_gpu import SimulatedGpu, simulated_gpu
from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineRequest, ImageKey, RequestScheduled, SamplingParams, TokenOutput
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import DeviceLost, Row
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.images import tile_image
from spyglass_server.prompt.files import read_prompt_files
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.cpu.plan import Planner
from spyglass_server.runtime.cuda.device import Compute, CudaDevice, Numbers, RecordingFailed
from spyglass_server.runtime.kernels import launch
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.model.layers import RMSNorm
from spyglass_server.runtime.runner import ModelRunner

PAGE = 4
META = torch.device("meta")
LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")


def row(**changes: Any) -> Row:
    request = EngineRequest(
        id=0,
        tokens=(),
        max_tokens=1,
        sampling=SamplingParams(temperature=0.0),
        image_positions=changes.pop("image_positions", ()),
    )
    return replace(Row(request=request, tokens=(5,), start=0, pages=(0,), choices=(0,)), **changes)


@pytest.fixture
def loader(tiny_checkpoint: Path) -> CheckpointLoader:
    return CheckpointLoader(
        folder=tiny_checkpoint,
        settings=EngineConfig(
            load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
            gpu_memory_utilization=0.9, cache_bytes=8 << 20, image_cache_bytes=8 << 20,
            tensor_parallel_size=1, max_batch=8, max_step_tokens=64, max_chunk_tokens=8,
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
def test_all_that_a_loaded_engine_holds_is_on_its_device(loader: CheckpointLoader, quantization: str) -> None:
    settings = replace(loader.settings, device="meta", quantization=quantization)
    core, info = replace(loader, settings=settings).load()
    assert info.device == "meta"
    tensors = tensors_of(core)
    assert len(tensors) > 100
    assert {str(tensor.device) for tensor in tensors} == {"meta"}


def test_what_a_step_reads_is_on_its_device() -> None:
    planner = Planner(page_size=PAGE, tile_size=6, dtype=torch.float32, device=META, run_lengths=None)
    prompt = row(tokens=tuple(range(7)), start=3, pages=(4, 5, 9), image_tiles=((0, 1, 5),), image_positions=(2,))
    rows = [prompt, *(replace(prompt, tokens=(1,), pages=tuple(range(i, i + 3))) for i in (10, 20, 30))]
    tensors = tensors_of(planner.batch(rows))
    assert len(tensors) > 5
    assert {str(tensor.device) for tensor in tensors} == {"meta"}


def test_cudnns_attention_which_prepares_for_every_shape_is_off(loader: CheckpointLoader) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    loader.load()
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]


# --- whole steps on a GPU ---------------------------------------------------------------------------


class MetaGpu(SimulatedGpu):
    """A GPU of tensors without memory: what is computed is nothing, but where it would be computed is known."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.uploads = self.downloads = self.others = 0
        gpus.append(self)

    def upload(self, numbers: NDArray[np.int32], target: Tensor) -> None:
        assert target.is_meta
        assert len(target) >= len(numbers)
        self.uploads += 1

    def download(self, tensor: Tensor) -> Numbers:
        assert tensor.is_meta
        assert tensor.dtype is torch.int32
        self.downloads += 1
        return lambda: np.zeros(len(tensor), np.int32)

    def to_device(self, tensor: Tensor) -> Tensor:
        self.others += 1
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)


gpus: list[MetaGpu] = []


class NothingOnTheHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations with tensors of the CPU, those of a single number included."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.lift_fresh.default:  # the host's own numbers, about to be copied
            return result
        for one in tree_leaves((args, kwargs, result)):
            assert not isinstance(one, Tensor) or one.is_meta, f"{func} has a tensor on the CPU"
        return result


@pytest.fixture
def gpu_runner(loader: CheckpointLoader, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRunner]:
    """A runner on a GPU without memory, whose kernels are only given what they would read and write."""

    def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        assert all(one.is_meta for one in arguments if isinstance(one, Tensor)), f"{kernel} is given a CPU tensor"
        assert all(isinstance(one, Tensor | int | float) for one in arguments)

    monkeypatch.setattr(launch, "start", start)
    with simulated_gpu(MetaGpu, "meta"):
        config = load_config(loader.folder)
        model = load_model(loader.folder, config, torch.float32, META)
        yield ModelRunner(model, 200, PAGE, 8, torch.float32, META, max_batch=4)


def nothing_on_the_host() -> contextlib.AbstractContextManager[None]:
    mode: contextlib.AbstractContextManager[None] = NothingOnTheHost()  # type: ignore[no-untyped-call]
    return mode


def steps() -> dict[str, list[Row]]:
    """All that a step may have."""
    prompt = row(tokens=tuple(range(7)), start=3, pages=(4, 5, 9), image_tiles=((0, 1, 5),), image_positions=(2,))
    asked = replace(prompt.request, tokens=tuple(range(12)), prompt_logprobs=True, top_logprobs=3)
    sampling = SamplingParams(
        temperature=0.7, top_p=0.9, top_k=9, min_p=0.1, frequency_penalty=0.5, repetition_penalty=1.1,
        logit_bias=((3, 1.0),),
    )  # fmt: skip
    steered = replace(prompt.request, sampling=sampling, top_logprobs=2, stop_token_ids=frozenset((1, 2)))
    return {
        "prefill": [replace(prompt, choices=())],
        "prefill and decode": [prompt, replace(prompt, tokens=(1,)), row(tokens=(4,), start=9, pages=(1, 2, 3))],
        "prompt logprobs": [replace(prompt, request=asked)],
        "decode": [row(), row(tokens=(3,), start=8, pages=(7, 8, 9))],
        "decode with a picture": [replace(prompt, tokens=(1,)), row()],
        "sampling": [
            replace(prompt, tokens=(1,), request=steered, history=(1, 2, 3), may_stop=False, matcher=Allows(5, 6))
        ],
    }


@pytest.mark.parametrize("name", steps())
def test_a_step_is_one_copy_to_the_gpu_and_one_back(gpu_runner: ModelRunner, name: str) -> None:
    gpu, rows = gpus[-1], steps()[name]
    uploads = gpu.uploads
    with nothing_on_the_host():
        outputs = gpu_runner.execute(rows)
    assert not any(output.error for output in outputs)
    is_told = any(one.choices or one.prompt_targets for one in rows)
    assert (gpu.uploads - uploads, gpu.downloads, gpu.others) == (1, int(is_told), 0)


def test_a_picture_is_one_copy_to_the_gpu_and_its_place_another(gpu_runner: ModelRunner, tiny_checkpoint: Path) -> None:
    key = ImageKey("t", b"one")
    tiles = tile_image(noise((300, 300)), read_prompt_files(tiny_checkpoint).image_spec)
    shared = SharedImages()
    try:
        shared.copy([(key, tiles.rows, tiles.columns, tiles.pixels.data)])
        gpu_runner.take_image(shared.inputs[0])
    finally:
        shared.release()
    with nothing_on_the_host():
        while not gpu_runner.encode_image(key, (0, 1, 2, 3)):
            pass
        gpu_runner.copy_pages([(0, 5), (1, 6)])
    assert (gpus[-1].downloads, gpus[-1].others) == (0, 3)


def test_a_number_that_stays_on_the_host_is_noticed(gpu_runner: ModelRunner) -> None:
    for module in gpu_runner._model.modules():
        if isinstance(module, RMSNorm):
            module.eps = torch.tensor(1e-5)  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="CPU tensor"), nothing_on_the_host():
        gpu_runner.execute(steps()["decode"])
    with pytest.raises(AssertionError, match="on the CPU"), nothing_on_the_host():
        torch.empty(3, device=META) + torch.tensor(1.0)


def test_an_engine_that_looks_ahead_answers_as_on_a_cpu(loader: CheckpointLoader) -> None:
    """Answers whose next step begins before their tokens are known, with one that forks and one that waits for them."""
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=5)
    requests = [
        EngineRequest(id=1, tokens=(5, 6, 7), max_tokens=4, sampling=sampling, top_logprobs=2),
        EngineRequest(id=2, tokens=(9, 8), max_tokens=3, sampling=sampling, n=2),
        EngineRequest(id=3, tokens=(4,) * 6, max_tokens=2, sampling=replace(sampling, frequency_penalty=1.0)),
    ]

    def answers(core: EngineCore) -> dict[tuple[int, int], list[int]]:
        found: dict[tuple[int, int], list[int]] = {}
        for one in requests[:2]:
            core.submit(one)
        while core.has_work:
            for event in core.step():
                assert isinstance(event, TokenOutput | RequestScheduled)
                if isinstance(event, TokenOutput):
                    found.setdefault((event.id, event.choice), []).append(event.token)
            if len(found) == 3 and (3, 0) not in found:
                found[3, 0] = []
                core.submit(requests[2])
        return found

    expected = answers(loader.load()[0])
    with simulated_gpu():
        core, _ = loader.load()
        assert core._runner.looks_ahead
        assert answers(core) == expected


# --- recording -------------------------------------------------------------------------------------


class Recorder(SimulatedGpu):
    """Records by keeping the computation, or fails at it; counts how often it was asked."""

    errors: ClassVar[list[Exception | None]] = []
    """One error, or none, for each time in turn; then no more."""
    asked = 0

    def record(self, compute: Compute) -> Compute:
        Recorder.asked += 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return compute


@pytest.fixture
def made(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModelRunner]]:
    """Makes runners of the same model, on a GPU that fails at recording as is said."""

    def make(*errors: Exception | None) -> ModelRunner:
        monkeypatch.setattr(Recorder, "errors", list(errors))
        monkeypatch.setattr(Recorder, "asked", 0)
        loaded = load_model(small_checkpoint, load_config(small_checkpoint), torch.float32, torch.device("cpu"))
        return ModelRunner(loaded, 200, PAGE, 0, torch.float32, torch.device("cpu"), max_batch=4)

    with simulated_gpu(Recorder):
        yield make


def answers(runner: ModelRunner, count: int = 2) -> list[int]:
    """Tokens that steps of one row and of three rows choose, by turns."""
    tokens = []
    for step in range(count):
        rows = [row(tokens=(7 + i,), pages=(10 * i,)) for i in range(1 + 2 * (step % 2))]
        tokens += [output.tokens[0] for output in runner.execute(rows)]
    return tokens


@pytest.mark.parametrize("recorded", [0, 2])
def test_what_cannot_be_recorded_is_computed_and_logged_once(
    made: Callable[..., ModelRunner], caplog: pytest.LogCaptureFixture, recorded: int
) -> None:
    runner = made(*[None] * recorded, RecordingFailed("operation not permitted when stream is capturing"))
    assert Recorder.asked == recorded + 1  # no more is tried
    assert caplog.text.count("cannot be recorded") == 1
    assert "stream is capturing" in caplog.text
    found = answers(runner)
    assert answers(made()) == found
    assert Recorder.asked == 6  # rows 1, 2 and 4, with and without images, and none in traffic


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), TypeError("a bug"), torch.OutOfMemoryError("CUDA out of memory"), LOST]
)
def test_other_errors_of_recording_are_passed_on(made: Callable[..., ModelRunner], error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        made(None, error)


class CudaStandIn:
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
            "Event": lambda: None,
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
    CudaStandIn(monkeypatch, capture=None, synchronize=None)
    assert torch.equal(CudaDevice(torch.device("cpu")).record(lambda: torch.ones(3))(), torch.ones(3))


@pytest.mark.parametrize("error", [NOT_PERMITTED, torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuBLAS")])
def test_what_fails_in_cudas_recording_only_is_of_the_recording(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    CudaStandIn(monkeypatch, capture=error, synchronize=None)
    with pytest.raises(RecordingFailed, match=str(error)):
        CudaDevice(torch.device("cpu")).record(lambda: torch.ones(3))


def test_a_device_that_is_lost_while_cuda_records_is_no_matter_of_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    CudaStandIn(monkeypatch, capture=RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), synchronize=LOST)
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        CudaDevice(torch.device("cpu")).record(lambda: torch.ones(3))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory"), LOST])
def test_what_fails_before_cuda_records_is_no_matter_of_recording(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def compute() -> Tensor:
        raise error

    CudaStandIn(monkeypatch, capture=None, synchronize=None)
    with pytest.raises(type(error), match=str(error)):
        CudaDevice(torch.device("cpu")).record(compute)


# --- lost devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [True, False])
def test_after_any_error_the_device_is_asked_whether_it_is_lost(
    made: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Libraries report a lost device as plain RuntimeErrors, as they do a bad batch."""

    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")

    runner = made()
    monkeypatch.setattr(runner._model.text, "forward", fail)
    monkeypatch.setattr(SimulatedGpu, "check", lambda gpu: raising(LOST if lost else None))
    expected = pytest.raises(DeviceLost) if lost else pytest.raises(RuntimeError)
    with expected as caught:
        runner.execute([row()])
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in str(caught.value)
