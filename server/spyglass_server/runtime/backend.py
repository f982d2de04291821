"""Backends compute batches on one kind of device: lay them out, run the text model, sample.

Only this module decides which backend a device uses.
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
    """The caches and their capacities. Block `num_pages` of the text cache is spare, for values that are never read."""

    text: SlotCache
    images: SlotCache
    num_pages: int
    page_size: int
    num_tiles: int
    tile_size: int
    max_batch: int
    max_tokens: int
    """Per sequence."""
    records_steps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """A plan's results: logits [rows, vocabulary] or None, prompt logprobs, and attention to images, float32 [context]
    for each row that requests it."""

    logits: Tensor | None
    prompts: tuple[TopLogprobs, ...] = ()
    attention: tuple[Tensor, ...] = ()


class Backend(Protocol):
    """A plan is built from rows; it contains all that the forward pass needs, and can be sent to other processes.

    Another backend of the same model that computes the same plans has the same caches.
    """

    looks_ahead: bool
    """As in `Runner`."""
    slice_tokens: int
    """Maximum tokens of an image computed at once in a layer."""
    slice_operations: float
    """Image encoding between two steps, in floating-point operations: a few milliseconds on GPUs."""

    def plan(self, rows: Sequence[Row]) -> Any:
        """Lays out rows as a batch."""

    def forward(self, plan: Any) -> ForwardOutput:
        """Computes a plan."""
        ...

    def sample(self, rows: Sequence[Row], plan: Any, output: ForwardOutput) -> Pending:
        """Chooses the tokens of each row's choices."""
        ...

    def follow(self, plan: Any) -> None:
        """Computes a plan whose tokens the first rank samples, and takes part in the collectives of that sampling."""

    def logits(self, row: Row) -> Tensor:
        """Returns the logits of every token of a row, float32 [tokens, vocabulary], to compare with a reference."""
        ...

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copies data that is not part of a plan to the device: pixels, and page and tile numbers."""
        ...

    def check(self) -> None:
        """Raises torch.AcceleratorError if the device is lost."""


def _cuda(model: TextModel, memory: Memory, device: torch.device) -> Backend:
    from spyglass_server.runtime.cuda.backend import CudaBackend
    from spyglass_server.runtime.cuda.device import CudaDevice

    return CudaBackend(model, memory, CudaDevice(device))


_MAKERS: dict[str, Callable[[TextModel, Memory, torch.device], Backend]] = {"cuda": _cuda}


def make_backend(model: TextModel, memory: Memory, device: torch.device, kernels: Kernels | None = None) -> Backend:
    """Returns the backend for a device; devices without one get the CPU backend, which may use our own kernels."""
    from spyglass_server.runtime.cpu.backend import CpuBackend

    if maker := _MAKERS.get(device.type):
        return maker(model, memory, device)
    return CpuBackend(model, memory, device, kernels)
