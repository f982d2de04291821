"""How weights get from files to a device: through buffers, a few at a time, with a report of progress."""

import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from checkpoints import random_checkpoint
from quantized import fp8_checkpoint
from spyglass_server.runtime import transfer as transfer_module
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.linear import Int8Linear
from spyglass_server.runtime.transfer import Job, Progress, StagedCopy, transfer

CPU = torch.device("cpu")


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the CPU load as GPUs do: several threads with small buffers. Holds the number of copies of each buffer."""
    piece = 4096
    waits: list[int] = []

    def make(device: torch.device) -> StagedCopy:
        index = len(waits)
        waits.append(0)
        buffer = torch.empty(piece, dtype=torch.uint8)

        def wait() -> None:
            waits[index] += 1
            buffer.fill_(255)  # the next copy may write what it likes here

        return StagedCopy(buffer, wait)

    monkeypatch.setattr(transfer_module, "_PIECE_BYTES", piece)
    monkeypatch.setitem(transfer_module._COPIES, "cpu", make)
    monkeypatch.setitem(transfer_module._THREADS, "cpu", 3)
    return waits


def parameters(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(load_model(folder, load_config(folder), dtype, CPU).named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_change_nothing(tiny_checkpoint: Path, request: pytest.FixtureRequest, dtype: torch.dtype) -> None:
    plain = parameters(tiny_checkpoint, dtype)
    waits = request.getfixturevalue("staged")
    buffered = parameters(tiny_checkpoint, dtype)
    assert plain.keys() == buffered.keys()
    for name, parameter in plain.items():
        assert buffered[name].dtype == dtype
        assert torch.equal(buffered[name], parameter), name
    total = sum(parameter.nbytes for parameter in plain.values())
    assert len(waits) == 3
    assert sum(waits) > total / 4096  # and it was through them


def test_buffers_change_nothing_of_what_is_stored_in_fp8(
    tiny_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = fp8_checkpoint(tiny_checkpoint, tmp_path)

    def buffers() -> dict[str, Tensor]:
        return dict(load_model(folder, load_config(folder), torch.float32, CPU).named_buffers())

    plain = buffers()
    request.getfixturevalue("staged")
    buffered = buffers()
    assert {tensor.dtype for tensor in plain.values()} >= {torch.float8_e4m3fn, torch.float32}
    for name, tensor in plain.items():
        assert buffered[name].dtype == tensor.dtype
        assert torch.equal(buffered[name].float(), tensor.float()), name


def test_a_linear_layer_is_gone_once_it_is_converted(tiny_checkpoint: Path, staged: list[int]) -> None:
    kept: list[weakref.ref[Tensor]] = []
    most = 0

    def convert(linear: nn.Linear) -> nn.Module:
        nonlocal most
        kept.append(weakref.ref(linear.weight))
        most = max(most, sum(weight() is not None for weight in kept))
        return Int8Linear(linear)

    load_model(tiny_checkpoint, load_config(tiny_checkpoint), torch.float32, CPU, convert)
    assert len(kept) > 20
    assert most == 1


def test_only_a_few_tensors_are_read_ahead(staged: list[int]) -> None:
    read: list[int] = []

    def part(index: int) -> Callable[[], Tensor]:
        def values() -> Tensor:
            read.append(index)
            return torch.full((7,), float(index))

        return values

    jobs = [
        Job(name=str(i), shape=torch.Size([2, 7]), dtype=torch.bfloat16, parts=[part(i), part(i)]) for i in range(50)
    ]
    tensors = transfer(jobs, CPU, Progress(1))
    for i, (name, tensor) in enumerate(tensors):
        assert name == str(i)
        assert torch.equal(tensor, torch.full((2, 7), float(i), dtype=torch.bfloat16))
        assert max(read) <= i + 4
    assert len(read) == 100


def test_a_file_is_let_go_after_its_last_tensor(tmp_path: Path) -> None:
    """Else all that was read of a checkpoint would count as memory of the process."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    folder = random_checkpoint(tmp_path / "sharded", num_shards=6)
    mapped: list[int] = []

    def convert(linear: nn.Linear) -> nn.Module:
        mapped.append(sum(path.name in maps.read_text() for path in folder.glob("*.safetensors")))
        return linear

    load_model(folder, load_config(folder), torch.float32, CPU, convert)
    assert mapped[0] > mapped[-1] > 0
    assert str(folder) not in maps.read_text()


def test_what_reading_raises_is_raised(staged: list[int]) -> None:
    def fail() -> Tensor:
        raise OSError("the disk is gone")

    jobs = [Job(name=str(i), shape=torch.Size([1]), dtype=torch.float32, parts=[fail]) for i in range(9)]
    with pytest.raises(OSError, match="the disk is gone"):
        list(transfer(jobs, CPU, Progress(1)))


def test_progress_is_a_line_every_few_seconds_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    progress = Progress(20_000_000_000, lambda: now)
    for _ in range(10):
        now += 1.0
        progress.add(2_000_000_000)
    progress.finish()
    assert [record.message for record in caplog.records] == [
        "weights: 10.0 of 20.0 GB loaded, 2.00 GB/s, 5 s left",
        "weights: 20.0 of 20.0 GB loaded, 2.00 GB/s, 0 s left",
        "weights: 20.00 GB loaded in 10.0 s, 2.00 GB/s",
    ]
