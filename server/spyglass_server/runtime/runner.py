"""Executes what the scheduler has decided: batches of rows, images, page copies.

A batch goes through three functions of the device's backend: rows become a plan, the forward pass turns the plan into
logits, and tokens are sampled from these.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spyglass_server.engine.messages import ImageInput, ImageKey
from spyglass_server.engine.shared_images import shared_pixels
from spyglass_server.engine.worker.batch import DeviceLost, Pending, Row, RowOutput
from spyglass_server.runtime.backend import Backend, ForwardOutput, Memory, make_backend
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.model.vision import Slices
from spyglass_server.runtime.native.modules import adapt, install_in_encoder
from spyglass_server.runtime.slot_cache import SlotCache


@contextmanager
def _noticing_lost_devices(backend: Backend) -> Iterator[None]:
    """Distinguishes errors after which the device refuses all further work from errors of the batch."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error
    except RuntimeError as error:  # cuBLAS and other libraries report a lost device with their own errors
        try:
            backend.check()
        except torch.AcceleratorError as lost:
            raise DeviceLost(f"{error}; {lost}") from error
        raise


class ModelRunner:
    """The runner of a Mllama model on one device. It owns the model from then on: weights may be packed."""

    def __init__(
        self,
        model: Mllama,
        num_pages: int,
        page_size: int,
        num_tiles: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        records_steps: bool = True,
        has_kernels: bool = True,
    ) -> None:
        """A batch has at most `max_batch` sequences, each of at most `max_tokens`: None for as many as fit the pages.

        If the device can record decode steps, it does so now, unless `records_steps` is false. CPUs compute with our
        own kernels if available, unless `has_kernels` is false.
        """
        if kernels := adapt(model.text, device, has_kernels=has_kernels):
            install_in_encoder(model.vision, kernels)
        self._model = model
        self._dtype = dtype
        config = model.config
        text, tile_size = model.text.config, config.vision.tokens_per_tile
        self._memory = Memory(
            text=SlotCache(text.num_self_layers, (num_pages + 1) * page_size, text, dtype, device),
            images=SlotCache(len(text.cross_layers), num_tiles * tile_size, text, dtype, device),
            num_pages=num_pages,
            page_size=page_size,
            num_tiles=num_tiles,
            tile_size=tile_size,
            max_batch=max_batch,
            max_tokens=max_tokens or num_pages * page_size,
            records_steps=records_steps,
        )
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (config.image_mean, config.image_std)
        )
        self._images: dict[ImageKey, tuple[ImageInput, Tensor]] = {}
        self._encoding: dict[ImageKey, Slices[Tensor]] = {}
        with torch.inference_mode():
            self._backend = make_backend(model.text, self._memory, device, kernels)
        self.looks_ahead = self._backend.looks_ahead
        self.tile_side = config.vision.tile_size

    @staticmethod
    def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
        """How much memory one page takes."""
        return page_size * SlotCache.slot_bytes(config.text.num_self_layers, config.text, dtype)

    @staticmethod
    def tile_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
        """How much memory the states of one tile take."""
        return config.vision.tokens_per_tile * SlotCache.slot_bytes(len(config.text.cross_layers), config.text, dtype)

    def take_image(self, image: ImageInput) -> None:
        with shared_pixels(image, self.tile_side) as pixels:
            self.take_pixels(image, pixels)

    def take_pixels(self, image: ImageInput, pixels: bytes | memoryview) -> None:
        """Keeps a copy of an image's pixels, uint8 [tiles, 3, tile, tile], until `drop_image`."""
        tile = self.tile_side
        view = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(image.num_tiles, 3, tile, tile)
        self._images[image.key] = (image, view)

    def drop_image(self, key: ImageKey) -> None:
        del self._images[key]
        self._encoding.pop(key, None)

    @torch.inference_mode()
    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        with _noticing_lost_devices(self._backend):
            return self._encode_slices(key, tiles)

    def _encode_slices(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        if key not in self._encoding:
            self._encoding[key] = self._encode(*self._images[key])
        spent = 0
        while spent < self._backend.slice_operations:
            try:
                spent += next(self._encoding[key])
            except StopIteration as end:
                del self._encoding[key]
                self._keep_states(end.value, tiles)
                return True
            except Exception:
                del self._encoding[key]
                raise
        return False

    def _encode(self, image: ImageInput, tiles: Tensor) -> Slices[Tensor]:
        """The states of an image: [cross layers, 2, kv_heads, tokens, head_dim]."""
        pixels = (self._backend.to_device(tiles).float() / 255 - self._mean) / self._std
        vision = self._model.vision
        size = self._backend.slice_tokens
        encoded = (yield from vision(pixels.to(self._dtype)[None], image.rows, image.columns, size))[0]
        pieces = []
        for piece in torch.split(encoded, size):
            pieces.append(torch.stack([layer.image_states(piece) for layer in self._model.text.cross_layers]))
            yield 2 * piece.numel() * pieces[-1][:, :, :, 0].numel()
        return torch.cat(pieces, dim=3)

    def _keep_states(self, states: Tensor, tiles: Sequence[int]) -> None:
        """Stores states [cross layers, 2, kv_heads, tokens, head_dim] where rows will read them."""
        size = self._memory.tile_size
        slots = np.asarray(tiles, np.int64)[:, None] * size + np.arange(size)
        where = self._backend.to_device(torch.from_numpy(slots.ravel()))
        for layer, (k, v) in enumerate(states.transpose(2, 3)):
            self._memory.images.write(layer, where, k, v)

    @torch.inference_mode()
    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            sources, targets = self._backend.to_device(torch.from_numpy(np.array(pairs).T.copy()))
            self._memory.text.copy(sources, targets, self._memory.page_size)

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        return self.start(rows)()

    def close(self) -> None:
        """There are no other processes."""

    @torch.inference_mode()
    def start(self, rows: Sequence[Row]) -> Pending:
        """Starts computing rows as one batch; the returned function waits for the outputs.

        Both raise what `execute` raises.
        """
        with _noticing_lost_devices(self._backend):
            plan = self.plan(rows)
            output = self.forward(plan)
        return self.sample(rows, plan, output)

    @torch.inference_mode()
    def sample(self, rows: Sequence[Row], plan: Any, output: ForwardOutput) -> Pending:
        """Chooses the rows' tokens from their plan's output."""
        with _noticing_lost_devices(self._backend):
            pending = self._backend.sample(rows, plan, output)

        def outputs() -> list[RowOutput]:
            with _noticing_lost_devices(self._backend):
                return pending()

        return outputs

    def plan(self, rows: Sequence[Row]) -> Any:
        """Lays out rows as a batch."""
        return self._backend.plan(rows)

    @torch.inference_mode()
    def forward(self, plan: Any) -> ForwardOutput:
        """Computes a plan. Another runner of the same model that computes the same plans has the same caches."""
        return self._backend.forward(plan)

    @torch.inference_mode()
    def follow(self, plan: Any) -> None:
        """Computes a plan of the first rank, which alone samples."""
        self._backend.follow(plan)

    @torch.inference_mode()
    def logits(self, row: Row) -> Tensor:
        """Returns the logits of every token of a row, float32 [tokens, vocabulary], to compare with a reference."""
        return self._backend.logits(row)
