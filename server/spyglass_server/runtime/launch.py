"""Builds an engine from a checkpoint folder and the engine's settings; decides the sizes of its caches.

The server makes a `CheckpointLoader` and sends it to the engine process; torch is imported only there, when `load`
runs.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineInfo
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from spyglass_server.runtime.config import ModelConfig

log = logging.getLogger(__name__)

PAGE_SIZE = 16
_LONGEST_BY_DEFAULT = 32768
_CPU_NICENESS = 5
_ATTENTION_SLOWNESS = 2.0
"""How much longer an operation of attention takes than one of a linear layer."""
_CHUNK_TOKENS = {"cpu": 64, "cuda": 512}


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
                f"--dtype and --quantization make them smaller: {error}"
            ) from error

    def _load(self) -> tuple[EngineCore, EngineInfo]:
        import torch

        from spyglass_server.runtime.checkpoint import load_model
        from spyglass_server.runtime.config import load_config
        from spyglass_server.runtime.grammar_compiler import ThreadedGrammarCompiler
        from spyglass_server.runtime.runner import ModelRunner

        config = load_config(self.folder)
        device = _choose_device(self.settings.device)
        dtype = _choose_dtype(self.settings.dtype, config)
        if device.type == "cpu":
            os.nice(max(0, _CPU_NICENESS - os.nice(0)))  # the event loops of server and bridge go first
        # cuDNN's attention, torch's first choice on new GPUs, prepares for every shape, and steps have ever new ones
        torch.backends.cuda.enable_cudnn_sdp(False)
        num_pages = self.settings.cache_bytes // ModelRunner.page_bytes(config, PAGE_SIZE, dtype)
        max_tokens = self._max_tokens(config, num_pages * PAGE_SIZE)
        quantization = _choose_quantization(self.settings.quantization, config, device)
        convert = _converter(quantization) if config.quantization == "none" else None
        model = load_model(self.folder, config, dtype, device, convert)
        max_tiles = self.settings.image_cache_bytes // ModelRunner.tile_bytes(config, dtype)
        if max_tiles < config.vision.max_tiles:
            needed = config.vision.max_tiles
            raise ValueError(f"--image-cache-bytes has room for {max_tiles} tiles; one image may need {needed}")
        limits = self._limits(config, device)
        runner = ModelRunner(model, num_pages, PAGE_SIZE, max_tiles, dtype, device)
        scheduler = Scheduler(limits, PagePool(num_pages, PAGE_SIZE), ImageCache(max_tiles))
        grammars = ThreadedGrammarCompiler(self.folder / "tokenizer.json", self.stop_token_ids)
        name = str(dtype).removeprefix("torch.")
        return EngineCore(scheduler, runner, grammars), EngineInfo(
            dtype=name,
            quantization=quantization,
            device=device.type,
            max_tokens=max_tokens,
            max_image_tiles=max_tiles,
            max_choices=self.settings.max_batch,
        )

    def _limits(self, config: "ModelConfig", device: "torch.device") -> Limits:
        """The limits of a step: as set, and what depends on the model and the device."""
        text = config.text
        width = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim + 3 * text.intermediate_size
        operations = 2 * text.num_layers * text.hidden_size * width  # of a token, without attention
        reading = 4 * text.num_self_layers * text.num_heads * text.head_dim  # of a token of context
        return Limits(
            max_batch=self.settings.max_batch,
            max_step_tokens=self.settings.max_step_tokens,
            max_chunk_tokens=self.settings.max_chunk_tokens or _CHUNK_TOKENS[device.type],
            context_cost=_ATTENTION_SLOWNESS * reading / operations,
        )

    def _max_tokens(self, config: "ModelConfig", room: int) -> int:
        made_for, wanted = config.text.max_position, self.settings.max_model_len
        if wanted is None:
            if room < 1:
                raise ValueError("--cache-bytes has no room for a single page")
            wanted = min(made_for, _LONGEST_BY_DEFAULT)
            if room < wanted:
                log.warning("--cache-bytes has room for %d tokens, so the context is not %d", room, wanted)
            return min(room, wanted)
        if wanted > made_for:
            raise ValueError(f"--max-model-len is {wanted}, but the model was made for {made_for} tokens")
        if wanted > room:
            raise ValueError(f"--max-model-len is {wanted}, but --cache-bytes has room for {room} tokens")
        return wanted


def _choose_device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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


def _converter(quantization: str) -> "Callable[[nn.Linear], nn.Module] | None":
    from spyglass_server.runtime.linear import Fp8Linear, Int8Linear

    return {"int8": Int8Linear, "fp8": Fp8Linear.quantized}.get(quantization)


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
