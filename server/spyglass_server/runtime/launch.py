"""Builds an engine from a checkpoint folder and the engine's settings; its cache sizes follow from the device.

The server creates a `CheckpointLoader` and sends it to the engine process; torch is imported only there, when `load`
runs.
"""

import hashlib
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyglass_common.phases import Phases
from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineInfo, MemoryInfo
from spyglass_server.engine.worker.batch import Runner
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.planning.costs import context_cost
from spyglass_server.planning.memory import PAGE_SIZE as PAGE_SIZE
from spyglass_server.planning.plan import CHUNK_TOKENS, DRAFT_ROWS, STEP_TOKENS
from spyglass_server.torchrun import Launch

if TYPE_CHECKING:
    import torch

    from spyglass_server.runtime.config import ModelConfig
    from spyglass_server.runtime.mesh import Mesh
    from spyglass_server.runtime.model.mllama import Mllama
    from spyglass_server.runtime.parallel.group import Group, Place
    from spyglass_server.runtime.parallel.watch import Tether
    from spyglass_server.runtime.runner import ModelRunner
    from spyglass_server.runtime.sizing import Sizing

log = logging.getLogger(__name__)

_CPU_NICENESS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a rank loads, and where."""

    config: "ModelConfig"
    device: "torch.device"
    dtype: "torch.dtype"
    quantization: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A rank's part of the model, and the sizing of its memory."""

    parts: _Parts
    sizing: "Sizing"
    model: "Mllama"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoader:
    """Loads the engine from a checkpoint folder.

    With `launch`, the other ranks are processes that torchrun has started.
    """

    folder: Path
    settings: EngineConfig
    launch: Launch | None = None

    def load(self) -> tuple[EngineCore, EngineInfo]:
        """Loads the model into this process.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong; the text is for the operator.
        """
        phases = Phases("Python")
        try:
            loaded = self._load(phases)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise ValueError(
                "there is too little memory for the model and its caches; --cache-bytes, --image-cache-bytes, "
                f"--gpu-memory-utilization, --dtype and --quantization make them smaller: {error}"
            ) from error
        log.info("loaded %s", phases)
        return loaded

    def load_rank(self, place: "Place", tether: "Tether") -> tuple["ModelRunner", "Group"]:
        """Loads a follower's part of the model, and joins the other ranks.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong; the text is for the operator.
        """
        from spyglass_server.runtime.parallel.group import Group, join_store

        phases = Phases("Python")
        parts = self._parts(place, phases)
        tether.report(self._given())
        loaded = self._loaded(parts, place.mesh, phases)
        tether.report("loaded")
        group = Group(place, join_store(place.host, tether.store_port), parts.device)
        runner, memory, _ = self._runner(loaded, group, phases)
        tether.report(asdict(memory))
        return runner, group

    def _load(self, phases: Phases) -> tuple[EngineCore, EngineInfo]:
        from spyglass_server.runtime.mesh import ALONE

        if self.settings.tensor_parallel_size > 1:
            return self._load_with_followers(phases)
        loaded = self._loaded(self._parts(None, phases), ALONE, phases)
        runner, memory, max_tokens = self._runner(loaded, None, phases)
        return self._engine(loaded, runner, (memory,), max_tokens, phases)

    def _load_with_followers(self, phases: Phases) -> tuple[EngineCore, EngineInfo]:
        """Loads the first rank's part. Until all ranks have loaded theirs, an error in any of them is raised here."""
        from spyglass_server.runtime.config import load_config
        from spyglass_server.runtime.parallel.followers import Followers
        from spyglass_server.runtime.parallel.leading import LeadingRunner
        from spyglass_server.runtime.sharding import sharded

        size = self.settings.tensor_parallel_size
        sharded(load_config(self.folder), size)  # rejects an indivisible model before anything is started
        followers = Followers(self, size, self.launch)
        try:
            parts = self._parts(followers.place, phases)
            self._compare(followers.gather())
            loaded = self._loaded(parts, followers.place.mesh, phases)
            followers.gather()
            group = followers.join(parts.device)
            runner, memory, max_tokens = self._runner(loaded, group, phases)
            others = (MemoryInfo(**report) for report in followers.gather())
            leading = LeadingRunner(runner, group, followers)
            return self._engine(loaded, leading, (memory, *others), max_tokens, phases)
        except BaseException:
            followers.kill()
            raise

    def _given(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        files = sorted(self.folder.glob("*.safetensors"))
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        return asdict(self.settings) | {"config.json": config, "weights": [file.name for file in files]}

    def _compare(self, others: list[dict[str, Any]]) -> None:
        own = self._given()
        for rank, other in enumerate(others, 1):
            for name, value in own.items():
                if other.get(name) == value:
                    continue
                if name == "weights":
                    missing = sorted(set(value) ^ set(other[name]))
                    raise ValueError(f"rank {rank} does not have the weights of the first one: {', '.join(missing)}")
                if name == "config.json":
                    raise ValueError(f"rank {rank} has another config.json than the first one")
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"rank {rank} was started with {option} {other.get(name)}, the first with {value}")

    def _engine(
        self, loaded: "_Loaded", runner: Runner, ranks: tuple[MemoryInfo, ...], max_tokens: int, phases: Phases
    ) -> tuple[EngineCore, EngineInfo]:
        from spyglass_server.prompt.files import read_prompt_files
        from spyglass_server.runtime.grammar_compiler import ThreadedGrammarCompiler

        parts, first = loaded.parts, ranks[0]
        pages = PagePool(first.kv_cache_tokens // PAGE_SIZE, PAGE_SIZE)
        scheduler = Scheduler(parts.limits, pages, ImageCache(first.image_cache_tiles))
        files = read_prompt_files(self.folder)
        grammars = ThreadedGrammarCompiler(files.tokenizer_path, files.stop_token_ids)
        phases.end("tokenizer")
        return EngineCore(scheduler, runner, grammars), EngineInfo(
            dtype=str(parts.dtype).removeprefix("torch."),
            quantization=parts.quantization,
            device=parts.device.type,
            max_tokens=max_tokens,
            max_image_tiles=first.image_cache_tiles,
            max_choices=self.settings.max_batch,
            num_cross_layers=len(parts.config.text.cross_layers),
            patches_per_side=parts.config.vision.patches_per_side,
            ranks=ranks,
        )

    def _parts(self, place: "Place | None", phases: Phases) -> "_Parts":
        """What is known before anything is loaded."""
        import torch

        phases.end("PyTorch")
        from spyglass_server.runtime.config import load_config

        config = load_config(self.folder)
        phases.end("configuration")
        device = _choose_device(self.settings.device, place)
        if device.type == "cpu":
            os.nice(max(0, _CPU_NICENESS - os.nice(0)))  # the event loops of server and bridge have priority
            if place is not None:
                torch.set_num_threads(max(1, torch.get_num_threads() // place.local_size))
        # cuDNN's attention, torch's first choice on new GPUs, prepares for every shape, and steps keep having new ones
        torch.backends.cuda.enable_cudnn_sdp(False)
        return _Parts(
            config=config,
            device=device,
            dtype=_choose_dtype(self.settings.dtype, config),
            quantization=_choose_quantization(self.settings.quantization, config, device),
            limits=self._limits(config, device),
        )

    def _loaded(self, parts: "_Parts", mesh: "Mesh", phases: Phases) -> "_Loaded":
        """Loads the model, or a rank's part of it; no rank waits for another."""
        from spyglass_server.runtime.sizing import Sizing

        settings = replace(self.settings, quantization=parts.quantization)
        sizing = Sizing(settings, parts.config, parts.dtype, parts.device, PAGE_SIZE, mesh)
        model = self._model(parts, mesh)
        phases.end("weights")
        return _Loaded(parts=parts, sizing=sizing, model=model)

    def _runner(
        self, loaded: "_Loaded", group: "Group | None", phases: Phases
    ) -> tuple["ModelRunner", MemoryInfo, int]:
        """Makes the caches, with the same sizes on all ranks; also returns the maximum length of a sequence."""
        from spyglass_server.runtime.runner import ModelRunner

        parts, sizing = loaded.parts, loaded.sizing
        sizes = sizing.caches(loaded.model, parts.limits)
        if group is not None:
            num_pages, num_tiles = group.least(sizes.num_pages, sizes.num_tiles)
            sizes = replace(sizes, num_pages=num_pages, num_tiles=num_tiles)
        memory = sizing.account(loaded.model, sizes)  # before the runner packs the weights, which hides their sizes
        max_tokens = sizing.max_tokens(sizes)
        runner = ModelRunner(
            loaded.model,
            sizes.num_pages,
            PAGE_SIZE,
            sizes.num_tiles,
            parts.dtype,
            parts.device,
            max_batch=self.settings.max_batch,
            max_tokens=max_tokens,
            has_kernels=self.settings.cpu_kernels == "auto",
        )
        phases.end("kernels, caches")
        return runner, memory, max_tokens

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
        """The limits of a step, from the settings, the model and the device."""
        return Limits(
            max_batch=self.settings.max_batch,
            **step_limits(self.settings, device.type),
            context_cost=context_cost(config.text),
            max_draft_rows=DRAFT_ROWS.get(device.type, 0) if self.settings.speculation == "auto" else 0,
        )


def step_limits(settings: EngineConfig, device: str) -> dict[str, int]:
    """Returns the maximum prompt tokens of a step, as set or by default for a kind of device."""
    return {
        "max_step_tokens": settings.max_step_tokens or max(settings.max_batch, STEP_TOKENS[device]),
        "max_chunk_tokens": settings.max_chunk_tokens or CHUNK_TOKENS[device],
    }


def _choose_device(name: str, place: "Place | None" = None) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and place is not None:
        if place.local_size > (count := torch.cuda.device_count()):
            raise ValueError(f"{place.local_size} ranks are to run on this machine, but it has {count} GPUs")
        torch.cuda.set_device(place.local_rank)
    return torch.device(name)


def _choose_quantization(name: str, config: "ModelConfig", device: "torch.device") -> str:
    """Returns how weights are kept: as set, or as the checkpoint stores them if it is already quantized."""
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
