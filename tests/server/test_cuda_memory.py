"""How CUDA is asked about memory and fed through pinned buffers; no device is needed, since torch's doors are replaced.

Stand-ins have the signatures of what they replace.
"""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch

from spyglass_server.runtime import transfer as transfer_module
from spyglass_server.runtime.probe import PROBES
from spyglass_server.runtime.transfer import Job, Progress, transfer

CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mock]:
    """Stand-ins for functions of torch.cuda, by name: of 80 GB, 50 are free and torch keeps 25, 20 of them in use."""
    names = ("init", "get_device_properties", "mem_get_info", "memory_reserved", "memory_allocated", "synchronize",
             "reset_peak_memory_stats", "max_memory_allocated", "empty_cache", "default_stream")  # fmt: skip
    found = {name: create_autospec(getattr(torch.cuda, name)) for name in names}
    found["get_device_properties"].return_value = SimpleNamespace(name="GPU", total_memory=80)
    found["mem_get_info"].return_value = (50, 80)
    found["memory_reserved"].return_value = 25
    found["memory_allocated"].return_value = 20
    for name, stand_in in found.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return found


def test_what_torch_does_not_keep_is_held_by_others(cuda: dict[str, Mock]) -> None:
    probe = PROBES["cuda"](CUDA)
    assert (probe.name, probe.total, probe.allocated(), probe.held()) == ("GPU", 80, 20, 5)


def test_a_peak_is_that_of_the_work_alone(cuda: dict[str, Mock]) -> None:
    order: list[str] = []
    cuda["synchronize"].side_effect = lambda *_: order.append("synchronize")
    cuda["reset_peak_memory_stats"].side_effect = lambda *_: order.append("reset")
    cuda["max_memory_allocated"].side_effect = lambda *_: 33 + 100 * (order[-2:] != ["work", "synchronize"])
    assert PROBES["cuda"](CUDA).peak_of(lambda: order.append("work")) == 13
    assert order == ["synchronize", "reset", "work", "synchronize"]


def test_tensors_go_to_cuda_through_pinned_buffers(cuda: dict[str, Mock], monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    empty, event = torch.empty, create_autospec(torch.cuda.Event)

    def on_the_cpu(*size: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> torch.Tensor:
        if pin_memory:
            pinned.append(size[0])
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(transfer_module, "_PIECE_BYTES", 1024)
    values = torch.arange(1000.0)
    job = Job(name="x", shape=torch.Size([10, 200]), dtype=torch.bfloat16, parts=[lambda: values, lambda: -values])
    [(name, tensor)] = transfer([job], CUDA, Progress(job.nbytes))
    assert name == "x"
    assert torch.equal(tensor, torch.cat((values, -values)).bfloat16().view(10, 200))
    assert pinned == [1024] * 4
    assert event.return_value.synchronize.call_count == event.return_value.record.call_count == 4
    assert event.return_value.record.call_args.args == (cuda["default_stream"].return_value,)
