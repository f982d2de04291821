"""What computes batches on one kind of device: lays them out, runs the text model, samples.

Which one a device has is decided here and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from spyglass_server.engine.worker.batch import Pending, Row
from spyglass_server.runtime.model.text import TextModel
from spyglass_server.runtime.native.kernels import Kernels
from spyglass_server.runtime.sampler import TopLogprobs
from spyglass_server.runtime.slot_cache import SlotCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The caches and what fits them. Block `num_pages` of the text's is spare: what nobody reads goes there."""

    text: SlotCache
    images: SlotCache
    num_pages: int
    page_size: int
    num_tiles: int
    tile_size: int
    max_batch: int
    max_tokens: int
    """Of one sequence."""
    records_steps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """What a plan asks for: logits [rows, vocabulary], None where there are none, prompt logprobs, and attention to
    images, float32 [context] of each row that tells it."""

    logits: Tensor | None
    prompts: tuple[TopLogprobs, ...] = ()
    attention: tuple[Tensor, ...] = ()


class Backend(Protocol):
    """A plan is made of rows; it holds all that the forward pass needs, and can be sent to other processes.

    Another backend of the same model that computes the same plans holds the same caches.
    """

    looks_ahead: bool
    """As a runner's."""
    slice_tokens: int
    """How many tokens of an image are computed at once in a layer."""
    slice_operations: float
    """How much of an image is encoded between two steps, in floating-point operations: some milliseconds on GPUs."""

    def plan(self, rows: Sequence[Row]) -> Any:
        """Lays out rows as a batch."""

    def forward(self, plan: Any) -> ForwardOutput:
        """Computes a plan."""
        ...

    def sample(self, rows: Sequence[Row], plan: Any, output: ForwardOutput) -> Pending:
        """Chooses the tokens of each row's choices."""
        ...

    def follow(self, plan: Any) -> None:
        """Computes a plan whose tokens the first rank samples, and takes part in what it does for that."""

    def logits(self, row: Row) -> Tensor:
        """Logits of every token of a row, float32 [tokens, vocabulary]: for comparisons with a reference."""
        ...

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copies what is no part of a plan to the device: pixels, and numbers of pages and tiles."""
        ...

    def check(self) -> None:
        """Raises torch.AcceleratorError when the device is lost."""


def _cuda(model: TextModel, memory: Memory, device: torch.device) -> Backend:
    from spyglass_server.runtime.cuda.backend import CudaBackend
    from spyglass_server.runtime.cuda.device import CudaDevice

    return CudaBackend(model, memory, CudaDevice(device))


_MAKERS: dict[str, Callable[[TextModel, Memory, torch.device], Backend]] = {"cuda": _cuda}


def make_backend(model: TextModel, memory: Memory, device: torch.device, kernels: Kernels | None = None) -> Backend:
    """The backend for a device; where there is none of its own, that for CPUs, which may have kernels of our own."""
    from spyglass_server.runtime.cpu.backend import CpuBackend

    if maker := _MAKERS.get(device.type):
        return maker(model, memory, device)
    return CpuBackend(model, memory, device, kernels)
