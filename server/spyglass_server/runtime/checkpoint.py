"""Loads weights from a checkpoint folder into the model.

Only (sharded) safetensors files are opened, so a checkpoint cannot run code. Tensors are read from the mapped files
when their parameter's turn comes, so that loading needs little more memory than the model.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.fp8 import FP8
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.mllama import Mllama, canonical_name, checkpoint_names
from spyglass_server.runtime.quantized_checkpoint import check_scales, dequantized
from spyglass_server.runtime.sharding import Cut, Sharding
from spyglass_server.runtime.transfer import Job, Progress, transfer
from spyglass_server.runtime.weights import Convert, empty_model, install

log = logging.getLogger(__name__)


def load_model(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    convert: Convert | None = None,
    mesh: Mesh = ALONE,
) -> Mllama:
    """Builds the model, or a rank's part of it, with a checkpoint's weights; `convert` as in `install`.

    Only the rank's own part of a sharded tensor is read.

    Linear modules of the text model's layers that the checkpoint stores in fp8 become `Fp8Linear`, regardless of
    `convert`. Checks that all tensors exist in the right shapes before reading the first.

    Raises:
        ValueError: tensors are missing or of the wrong shape, or a file is damaged.
        OSError: a file cannot be read.
    """
    model = empty_model(config, mesh)
    try:
        jobs = _jobs(folder, model, dtype)
        progress = Progress(sum(job.nbytes for job in jobs))
        install(model, transfer(_taken(jobs), device, progress), convert)
    except SafetensorError as error:
        raise ValueError(f"a weight file in {folder} is damaged: {error}") from error
    progress.finish()
    return model


def _jobs(folder: Path, model: Mllama, dtype: torch.dtype) -> deque[Job]:
    tensors = _Tensors(folder)
    jobs = deque(
        job
        for name, parameter in model.named_parameters()
        for job in _jobs_of(tensors, name, model, parameter.shape, dtype)
    )
    if unused := tensors.unused():
        log.warning("%d tensors of the checkpoint are not used, such as %s", len(unused), unused[0])
    return jobs


def _taken(jobs: deque[Job]) -> Iterator[Job]:
    """Drops each job it yields, so that a file is closed, and its memory released, after its last job."""
    while jobs:
        yield jobs.popleft()


def _jobs_of(tensors: "_Tensors", name: str, model: Mllama, shape: torch.Size, dtype: torch.dtype) -> Iterator[Job]:
    """Yields the jobs for a parameter and, if it is in fp8, for its scales."""
    config = model.config
    parts = _parts(tensors, name, model, shape)
    scales = [part.scale for part in parts if part.scale]
    if scales and config.quantization == "none":
        raise ValueError(f"{parts[0].name} is in fp8, but config.json has no quantization_config")
    if name.startswith("text.layers.") and len(scales) == len(parts):
        yield Job(name=name, shape=shape, dtype=FP8, parts=[part.read_stored for part in parts])
        of_outputs, readers = torch.Size((shape[0], 1)), [scale.read for scale in scales]
        yield Job(name=f"{name}_scale", shape=of_outputs, dtype=torch.float32, parts=readers)
    else:
        yield Job(name=name, shape=shape, dtype=dtype, parts=[part.read for part in parts])


def _parts(tensors: "_Tensors", name: str, model: Mllama, shape: torch.Size) -> Sequence["_Source"]:
    """Returns the checkpoint's tensors for a parameter, cut for the rank."""
    config, mesh = model.config, model.mesh
    if name == "text.head.weight" and config.text.tied_embeddings:
        head = tensors.find("language_model.embed_tokens.weight")
        found = [replace(head, rows=config.text.vocab_size)]
    else:
        found = [tensors.find(source) for source in checkpoint_names(name, config)]
    cuts = Sharding(config, mesh.rank, mesh.size).cuts(name, len(found))
    parts = [part if cut is None else part.cut(cut) for part, cut in zip(found, cuts, strict=True)]
    fits = len({part.shape[1:] for part in parts}) == 1 and sum(part.shape[0] for part in parts) == shape[0]
    if not fits or sum(math.prod(part.shape) for part in parts) != shape.numel():
        shapes = ", ".join(str(list(part.whole_shape)) for part in found)
        raise ValueError(f"{name} should have shape {_whole(name, model, shape)}, but the checkpoint has {shapes}")
    return parts


def _whole(name: str, model: Mllama, shape: torch.Size) -> list[int]:
    """Returns the shape of a parameter in the whole model."""
    if model.mesh.size == 1:
        return list(shape)
    return list(empty_model(model.config).get_parameter(name).shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A tensor in an open file or, with `own`, a rank's part of it; with the scales of its rows if it is in fp8."""

    file: Any
    name: str
    scale: "_Source | None" = None
    rows: int | None = None
    """If set, only this many leading rows are used."""
    own: Cut | None = None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Never empty: a scalar counts as one row."""
        shape = tuple(self.file.get_slice(self.name).get_shape()) or (1,)
        return shape if self.rows is None else (min(self.rows, shape[0]), *shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor as read."""
        shape = list(self.whole_shape)
        if self.own is not None:
            shape[self.own.dim] = self.own.size
        return tuple(shape)

    @property
    def is_fp8(self) -> bool:
        return bool(self.file.get_slice(self.name).get_dtype() == "F8_E4M3")

    def cut(self, own: Cut) -> "_Source":
        """Returns a part of the tensor, or the whole if it is too small for the cut."""
        if own.dim >= len(self.whole_shape) or own.end > self.whole_shape[own.dim]:
            return self  # the caller reports the wrong shape
        scale = self.scale and (self.scale.cut(own) if own.dim == 0 else self.scale)
        return replace(self, own=own, scale=scale)

    def read(self) -> Tensor:
        """Returns the dequantized values; a view of the mapped file if the tensor is neither in fp8 nor cut."""
        tensor = self.read_stored()
        return dequantized(tensor, self.scale.read_stored()) if self.scale else tensor

    def read_stored(self) -> Tensor:
        """Returns the values, in fp8 without their scales; a view of the mapped file if nothing is cut."""
        own = self.own
        if own is None:
            tensor: Tensor = self.file.get_tensor(self.name)
            return tensor if self.rows is None else tensor[: self.rows]
        part = slice(own.begin, own.end)
        found: Tensor = self.file.get_slice(self.name)[part if own.dim == 0 else (slice(None), part)]
        missing = own.size - found.shape[own.dim]
        if not missing:
            return found
        padded = found.new_zeros(self.shape)
        padded.narrow(own.dim, 0, found.shape[own.dim]).copy_(found)
        return padded


class _Tensors:
    """The tensors of a folder's safetensors files by canonical name."""

    def __init__(self, folder: Path) -> None:
        files: list[Any] = [safe_open(path, framework="pt", device="cpu") for path in _weight_files(folder)]
        self._sources = {canonical_name(name): _Source(file=file, name=name) for file in files for name in file.keys()}  # noqa: SIM118
        self._unused = set(self._sources)

    def find(self, name: str) -> _Source:
        if name not in self._sources:
            raise ValueError(f"the checkpoint has no tensor {name!r}")
        self._unused.discard(name)
        source = self._sources[name]
        if not source.is_fp8:
            return source
        scale = self.find(f"{name}_scale")
        check_scales(source.name, source.shape, scale.shape)
        return replace(source, scale=scale)

    def unused(self) -> list[str]:
        return sorted(self._unused)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any("/" in name or not name.endswith(".safetensors") for name in names):
            raise ValueError(f"{index.name} names a file that is not a safetensors file of this folder")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise ValueError(f"{folder} has no model.safetensors; other weight formats are not loaded")
