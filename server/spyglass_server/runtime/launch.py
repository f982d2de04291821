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
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler

if TYPE_CHECKING:
    import torch

    from spyglass_server.runtime.config import ModelConfig
    from spyglass_server.runtime.model.mllama import Mllama

log = logging.getLogger(__name__)

PAGE_SIZE = 16
_CPU_NICENESS = 5
_ATTENTION_SLOWNESS = 2.0
"""How much longer an operation of attention takes than one of a linear layer."""
_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
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
                f"--gpu-memory-utilization, --dtype and --quantization make them smaller: {error}"
            ) from error

    def _load(self) -> tuple[EngineCore, EngineInfo]:
        import torch

        from spyglass_server.runtime.config import load_config
        from spyglass_server.runtime.grammar_compiler import ThreadedGrammarCompiler
        from spyglass_server.runtime.runner import ModelRunner
        from spyglass_server.runtime.sizing import Sizing

        config = load_config(self.folder)
        device = _choose_device(self.settings.device)
        dtype = _choose_dtype(self.settings.dtype, config)
        if device.type == "cpu":
            os.nice(max(0, _CPU_NICENESS - os.nice(0)))  # the event loops of server and bridge go first
        # cuDNN's attention, torch's first choice on new GPUs, prepares for every shape, and steps have ever new ones
        torch.backends.cuda.enable_cudnn_sdp(False)
        limits = self._limits(config, device)
        quantization = _choose_quantization(self.settings.quantization, config, device)
        sizing = Sizing(replace(self.settings, quantization=quantization), config, dtype, device, PAGE_SIZE)
        model = self._model(config, dtype, device, quantization)
        sizes, memory = sizing.caches(model, limits)
        max_tokens = sizing.max_tokens(sizes)
        runner = ModelRunner(
            model,
            sizes.num_pages,
            PAGE_SIZE,
            sizes.num_tiles,
            dtype,
            device,
            max_batch=self.settings.max_batch,
            max_tokens=max_tokens,
        )
        scheduler = Scheduler(limits, PagePool(sizes.num_pages, PAGE_SIZE), ImageCache(sizes.num_tiles))
        grammars = ThreadedGrammarCompiler(self.folder / "tokenizer.json", self.stop_token_ids)
        return EngineCore(scheduler, runner, grammars), EngineInfo(
            dtype=str(dtype).removeprefix("torch."),
            quantization=quantization,
            device=device.type,
            max_tokens=max_tokens,
            max_image_tiles=sizes.num_tiles,
            max_choices=self.settings.max_batch,
            memory=memory,
        )

    def _model(
        self, config: "ModelConfig", dtype: "torch.dtype", device: "torch.device", quantization: str
    ) -> "Mllama":
        from spyglass_server.runtime.checkpoint import load_model
        from spyglass_server.runtime.dummy_weights import dummy_model
        from spyglass_server.runtime.linear import CONVERTERS

        convert = CONVERTERS.get(quantization)
        if self.settings.load_format == "dummy":
            log.warning("--load-format is dummy: the weights are random, and so are the answers")
            return dummy_model(config, dtype, device, convert)
        return load_model(self.folder, config, dtype, device, convert if config.quantization == "none" else None)

    def _limits(self, config: "ModelConfig", device: "torch.device") -> Limits:
        """The limits of a step: as set, and what depends on the model and the device."""
        text, settings = config.text, self.settings
        width = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim + 3 * text.intermediate_size
        operations = 2 * text.num_layers * text.hidden_size * width  # of a token, without attention
        reading = 4 * text.num_self_layers * text.num_heads * text.head_dim  # of a token of context
        return Limits(
            max_batch=settings.max_batch,
            max_step_tokens=settings.max_step_tokens or max(settings.max_batch, _STEP_TOKENS[device.type]),
            max_chunk_tokens=settings.max_chunk_tokens or _CHUNK_TOKENS[device.type],
            context_cost=_ATTENTION_SLOWNESS * reading / operations,
        )


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
