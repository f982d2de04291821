"""Decides how large the caches are. Whatever can be checked before a model is loaded is checked first.

On GPUs caches take the usable memory that weights and the largest step leave; on CPUs their sizes are set.
"""

import itertools
import logging
import socket

import torch

from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import MemoryInfo
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.planning.memory import CacheSizes, CacheUnits, CacheWishes, gigabytes
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.fit import Device, Fit, precision
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.probe import PROBES, host_bytes
from spyglass_server.runtime.profile_run import ProfileRun
from spyglass_server.runtime.runner import ModelRunner
from spyglass_server.runtime.sharding import sharded
from spyglass_server.runtime.weights import count_parameters, empty_model

log = logging.getLogger(__name__)

_LONGEST_BY_DEFAULT = 32_768
_CPU_CACHE_BYTES, _CPU_IMAGE_CACHE_BYTES = 2 << 30, 1 << 30
_QUANTIZATIONS = {"cuda": ("none", "fp8"), "cpu": ("none", "int8")}
"""Quantizations to propose if a model does not fit."""


class Sizing:
    """The memory of a model that is about to be loaded."""

    def __init__(
        self,
        settings: EngineConfig,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        page_size: int,
        mesh: Mesh = ALONE,
    ) -> None:
        """Checks all that can be known before loading; on a mesh, for one rank's part.

        Raises:
            ValueError: weights or caches do not fit, or settings contradict the model; the text is for the operator.
        """
        self._count = count_parameters(empty_model(config, mesh))
        config = sharded(config, mesh.size)
        self._settings, self._config, self._dtype, self._device = settings, config, dtype, device
        self._probe = PROBES[device.type](device) if device.type in PROBES else None
        self._units = cache_units(config, dtype, page_size)
        text, images = settings.cache_bytes, settings.image_cache_bytes
        if self._probe is None:
            text, images = text or _CPU_CACHE_BYTES, images or _CPU_IMAGE_CACHE_BYTES
        self._wishes = CacheWishes(
            cache_bytes=text,
            image_cache_bytes=images,
            max_model_len=settings.max_model_len,
            max_images=settings.max_batch,
        )
        self._check_given()
        self._fit().check()

    def caches(self, model: Mllama, limits: Limits) -> CacheSizes:
        """Returns the sizes of the caches for a loaded model.

        Raises:
            ValueError: too little memory is left for them; the text is for the operator.
        """
        text, images = self._wishes.cache_bytes, self._wishes.image_cache_bytes
        if self._probe is None:
            assert text is not None
            assert images is not None
            return CacheSizes(num_pages=text // self._units.page_bytes, num_tiles=images // self._units.tile_bytes)
        run = ProfileRun(
            model=model,
            limits=limits,
            context=self._wanted_tokens,
            units=self._units,
            dtype=self._dtype,
            device=self._device,
        )
        weight_bytes = self._probe.allocated()
        step_bytes = run.measure(self._probe)
        log.info("the largest step takes %s beside weights and caches", gigabytes(step_bytes))
        return self._fit().divide(weight_bytes, step_bytes)

    def account(self, model: Mllama, sizes: CacheSizes) -> MemoryInfo:
        """Returns and logs where all memory goes."""
        weight_bytes = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))
        units, memory = self._units, self._memory()
        info = MemoryInfo(
            host=socket.gethostname(),
            device_name=memory.name,
            device_bytes=memory.total,
            weight_bytes=weight_bytes,
            kv_cache_tokens=sizes.num_pages * units.page_size,
            kv_cache_bytes=sizes.num_pages * units.page_bytes,
            image_cache_tiles=sizes.num_tiles,
            image_cache_bytes=sizes.num_tiles * units.tile_bytes,
        )
        log.info(
            "memory of %s, %s: weights %s in %s; text %s for %d tokens in %d pages; images %s for %d tiles",
            info.device_name,
            gigabytes(info.device_bytes),
            gigabytes(info.weight_bytes),
            precision(self._dtype),
            gigabytes(info.kv_cache_bytes),
            info.kv_cache_tokens,
            sizes.num_pages,
            gigabytes(info.image_cache_bytes),
            info.image_cache_tiles,
        )
        return info

    def max_tokens(self, sizes: CacheSizes) -> int:
        """Returns the length of the longest sequence for which the pages have room."""
        room, wanted = sizes.num_pages * self._units.page_size, self._wanted_tokens
        if room < wanted:
            holder = "the KV cache" if self._wishes.cache_bytes is None else "--cache-bytes"
            log.warning("%s has room for %d tokens, so the context is not %d", holder, room, wanted)
        return min(room, wanted)

    @property
    def _wanted_tokens(self) -> int:
        return self._settings.max_model_len or min(self._config.text.max_position, _LONGEST_BY_DEFAULT)

    def _memory(self) -> Device:
        if self._probe is None:
            return Device(name=self._device.type, total=host_bytes())
        share = self._settings.gpu_memory_utilization
        return Device(name=self._probe.name, total=self._probe.total, share=share, held=self._probe.held())

    def _fit(self) -> Fit:
        """The fit as of now: the memory that others hold changes. On CPUs caches take memory only when used."""
        nothing = CacheWishes(cache_bytes=0, image_cache_bytes=0, max_model_len=None, max_images=0)
        dtypes = (self._dtype, torch.bfloat16)
        stored = self._config.quantization
        return Fit(
            count=self._count,
            device=self._memory(),
            wishes=self._wishes if self._probe else nothing,
            units={dtype: cache_units(self._config, dtype, self._units.page_size) for dtype in dtypes},
            quantizations=_QUANTIZATIONS.get(self._device.type, ("none",)) if stored == "none" else (stored,),
            dtype=self._dtype,
            quantization=self._settings.quantization,
        )

    def _check_given(self) -> None:
        """Checks the configured lengths and sizes against the model."""
        made_for, wanted = self._config.text.max_position, self._wishes.max_model_len
        text, images, units = self._wishes.cache_bytes, self._wishes.image_cache_bytes, self._units
        if wanted is not None and wanted > made_for:
            raise ValueError(f"--max-model-len is {wanted}, but the model was made for {made_for} tokens")
        if text is not None:
            room = text // units.page_bytes * units.page_size
            if not room:
                raise ValueError("--cache-bytes has no room for a single page")
            if wanted is not None and wanted > room:
                raise ValueError(f"--max-model-len is {wanted}, but --cache-bytes has room for {room} tokens")
        if images is not None and images < units.image_bytes:
            room = images // units.tile_bytes
            raise ValueError(f"--image-cache-bytes has room for {room} tiles; one image may need {units.image_tiles}")


def cache_units(config: ModelConfig, dtype: torch.dtype, page_size: int) -> CacheUnits:
    """Returns the sizes of a model's pages and tiles in a precision."""
    return CacheUnits(
        page_size=page_size,
        page_bytes=ModelRunner.page_bytes(config, page_size, dtype),
        tile_bytes=ModelRunner.tile_bytes(config, dtype),
        image_tiles=config.vision.max_tiles,
    )
