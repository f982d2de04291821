"""Builds an engine from a checkpoint folder and the engine's settings; the sizes of its caches follow from the device.

The server makes a `CheckpointLoader` and sends it to the engine process; torch is imported only there, when `load`
runs.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineInfo
from spyglass_server.engine.worker.batch import Runner
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.planning.costs import context_cost
from spyglass_server.planning.memory import PAGE_SIZE as PAGE_SIZE
from spyglass_server.planning.plan import CHUNK_TOKENS, STEP_TOKENS

if TYPE_CHECKING:
    import torch

    from spyglass_server.engine.messages import MemoryInfo
    from spyglass_server.planning.memory import CacheSizes
    from spyglass_server.runtime.config import ModelConfig
    from spyglass_server.runtime.mesh import Mesh
    from spyglass_server.runtime.model.mllama import Mllama
    from spyglass_server.runtime.parallel.group import Group, Place
    from spyglass_server.runtime.runner import ModelRunner

log = logging.getLogger(__name__)

_CPU_NICENESS = 5
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a rank loads, and where."""

    config: "ModelConfig"
    device: "torch.device"
    dtype: "torch.dtype"
    quantization: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoader:
    """Loads the engine from a checkpoint folder. Structured outputs end in one of `stop_token_ids`."""

    folder: Path
    settings: EngineConfig
    stop_token_ids: frozenset[int] = frozenset()

    def load(self) -> tuple[EngineCore, EngineInfo]:
        """Loads the model into this process.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong; the text is for the operator.
        """
        try:
            return self._load()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise ValueError(
                "there is too little memory for the model and its caches; --cache-bytes, --image-cache-bytes, "
                f"--gpu-memory-utilization, --dtype and --quantization make them smaller: {error}"
            ) from error

    def load_rank(self, place: "Place") -> tuple["ModelRunner", "Group"]:
        """Joins the other ranks, and loads this one's part of the model.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong; the text is for the operator.
        """
        from spyglass_server.runtime.parallel.group import Group, open_store

        parts = self._parts(place.rank)
        group = Group(place, open_store(place, is_first=False), parts.device)
        return self._runner(parts, group)[0], group

    def _load(self) -> tuple[EngineCore, EngineInfo]:
        from spyglass_server.runtime.grammar_compiler import ThreadedGrammarCompiler

        parts = self._parts(0)
        group = self._lead(parts) if self.settings.tensor_parallel_size > 1 else None
        own, sizes, memory, max_tokens = self._runner(parts, group)
        runner: Runner = own
        if group is not None:
            from spyglass_server.runtime.parallel.leading import LeadingRunner

            runner = LeadingRunner(own, group)
        scheduler = Scheduler(parts.limits, PagePool(sizes.num_pages, PAGE_SIZE), ImageCache(sizes.num_tiles))
        grammars = ThreadedGrammarCompiler(self.folder / "tokenizer.json", self.stop_token_ids)
        return EngineCore(scheduler, runner, grammars), EngineInfo(
            dtype=str(parts.dtype).removeprefix("torch."),
            quantization=parts.quantization,
            device=parts.device.type,
            max_tokens=max_tokens,
            max_image_tiles=sizes.num_tiles,
            max_choices=self.settings.max_batch,
            memory=memory,
        )

    def _parts(self, rank: int) -> "_Parts":
        """What is known before anything is loaded."""
        import torch

        from spyglass_server.runtime.config import load_config
        from spyglass_server.runtime.sharding import sharded

        config = load_config(self.folder)
        sharded(config, self.settings.tensor_parallel_size)  # tells what cannot be divided
        device = _choose_device(self.settings.device, rank, self.settings.tensor_parallel_size)
        if device.type == "cpu":
            os.nice(max(0, _CPU_NICENESS - os.nice(0)))  # the event loops of server and bridge go first
            if self.settings.tensor_parallel_size > 1:
                torch.set_num_threads(max(1, torch.get_num_threads() // self.settings.tensor_parallel_size))
        # cuDNN's attention, torch's first choice on new GPUs, prepares for every shape, and steps have ever new ones
        torch.backends.cuda.enable_cudnn_sdp(False)
        return _Parts(
            config=config,
            device=device,
            dtype=_choose_dtype(self.settings.dtype, config),
            quantization=_choose_quantization(self.settings.quantization, config, device),
            limits=self._limits(config, device),
        )

    def _lead(self, parts: "_Parts") -> "Group":
        """Starts the other ranks, and joins them as the first."""
        from spyglass_server.runtime.parallel.followers import Followers
        from spyglass_server.runtime.parallel.group import Group, Place, open_store
        from spyglass_server.runtime.parallel.watch import Watch

        size = self.settings.tensor_parallel_size
        store = open_store(Place(rank=0, size=size, host=_LOOPBACK, port=0), is_first=True)
        place = Place(rank=0, size=size, host=_LOOPBACK, port=store.port)
        followers = Followers(self, place)
        Watch(open_store(place, is_first=False), 0, range(1, size), followers.end)
        return Group(place, store, parts.device)

    def _runner(self, parts: "_Parts", group: "Group | None") -> tuple["ModelRunner", "CacheSizes", "MemoryInfo", int]:
        """Loads the model, or a rank's part, and makes the caches, which are of the same sizes on all ranks."""
        from spyglass_server.runtime.mesh import ALONE
        from spyglass_server.runtime.runner import ModelRunner
        from spyglass_server.runtime.sizing import Sizing

        mesh = group.mesh if group else ALONE
        settings = replace(self.settings, quantization=parts.quantization)
        sizing = Sizing(settings, parts.config, parts.dtype, parts.device, PAGE_SIZE, mesh)
        model = self._model(parts, mesh)
        sizes, memory = sizing.caches(model, parts.limits)
        if group is not None:
            num_pages, num_tiles = group.least(sizes.num_pages, sizes.num_tiles)
            sizes = replace(sizes, num_pages=num_pages, num_tiles=num_tiles)
        max_tokens = sizing.max_tokens(sizes)
        runner = ModelRunner(
            model,
            sizes.num_pages,
            PAGE_SIZE,
            sizes.num_tiles,
            parts.dtype,
            parts.device,
            max_batch=self.settings.max_batch,
            max_tokens=max_tokens,
        )
        return runner, sizes, memory, max_tokens

    def _model(self, parts: "_Parts", mesh: "Mesh") -> "Mllama":
        from spyglass_server.runtime.checkpoint import load_model
        from spyglass_server.runtime.dummy_weights import dummy_model
        from spyglass_server.runtime.linear import CONVERTERS

        config, convert = parts.config, CONVERTERS.get(parts.quantization)
        if self.settings.load_format == "dummy":
            log.warning("--load-format is dummy: the weights are random, and so are the answers")
            return dummy_model(config, parts.dtype, parts.device, convert, mesh)
        return load_model(
            self.folder, config, parts.dtype, parts.device, convert if config.quantization == "none" else None, mesh
        )

    def _limits(self, config: "ModelConfig", device: "torch.device") -> Limits:
        """The limits of a step: as set, and what depends on the model and the device."""
        return Limits(
            max_batch=self.settings.max_batch,
            **step_limits(self.settings, device.type),
            context_cost=context_cost(config.text),
        )


def step_limits(settings: EngineConfig, device: str) -> dict[str, int]:
    """How many tokens of prompts a step computes at most, as set or as a kind of device has it by default."""
    return {
        "max_step_tokens": settings.max_step_tokens or max(settings.max_batch, STEP_TOKENS[device]),
        "max_chunk_tokens": settings.max_chunk_tokens or CHUNK_TOKENS[device],
    }


def _choose_device(name: str, rank: int = 0, num_ranks: int = 1) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and num_ranks > 1:
        if num_ranks > (count := torch.cuda.device_count()):
            raise ValueError(f"--tensor-parallel-size is {num_ranks}, but this machine has {count} GPUs")
        torch.cuda.set_device(rank)
    return torch.device(name)


def _choose_quantization(name: str, config: "ModelConfig", device: "torch.device") -> str:
    """How weights are kept: as the setting says, or as the checkpoint stores them where that is quantized already."""
    if name == "int8" and device.type == "cuda":
        raise ValueError(
            "--quantization int8 is for CPUs: on a GPU it is slower than bfloat16, since each product needs some 18 "
            "kernels more; choose fp8"
        )
    if config.quantization == "none":
        return name
    if name not in ("none", config.quantization):
        raise ValueError(f"--quantization is {name}, but the checkpoint is stored in {config.quantization}")
    return config.quantization


def _choose_dtype(name: str, config: "ModelConfig") -> "torch.dtype":
    import torch

    dtype = config.dtype if name == "auto" else getattr(torch, name)
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"the checkpoint is in {dtype}; choose --dtype bfloat16 or float32")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
