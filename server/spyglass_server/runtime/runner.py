"""Executes what the scheduler has decided: batches of rows, images, page copies.

Owns the tensors that pages, tiles and image keys stand for. Decides nothing.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spyglass_server.engine.messages import ImageInput, ImageKey, Logprobs, SamplingParams
from spyglass_server.engine.shared_images import shared_pixels
from spyglass_server.engine.worker.batch import DeviceLost, Row, RowOutput
from spyglass_server.runtime.attention import BatchMemory, BatchViews, SlotCache
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.graphs import DecodeGraphs, Record, record_cuda
from spyglass_server.runtime.linear import pack_linears
from spyglass_server.runtime.logits_processors import process_logits
from spyglass_server.runtime.model.layers import rotary_angles, rotary_frequencies
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.model.vision import Slices
from spyglass_server.runtime.plan import BatchPlan, Planner, places
from spyglass_server.runtime.sampler import Draw, logprobs_of, sample

log = logging.getLogger(__name__)

_SLICE_TOKENS = 512
"""Image tokens per layer before the encoder yields."""
_PROMPT_LOGITS_ROWS = 64
"""Prompt positions per logits batch, to bound memory."""
_RECORDERS: dict[str, Callable[[], Record]] = {"cuda": record_cuda}
"""How devices record decode steps; others compute them one operation at a time."""
_PROBES: dict[str, Callable[[torch.device], None]] = {"cuda": torch.cuda.synchronize}
"""Raises an AcceleratorError when the device is lost."""
_SLICE_OPERATIONS = {"cpu": 4e9, "cuda": 1e12}
"""How much of an image is encoded at once, in floating-point operations: some 30 ms on two cores."""


@contextmanager
def _noticing_lost_devices(device: torch.device) -> Iterator[None]:
    """Tells errors after which the device refuses everything else from those of the batch."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error
    except RuntimeError as error:  # cuBLAS and other libraries report a lost device as errors of their own
        try:
            _PROBES.get(device.type, _no_probe)(device)
        except torch.AcceleratorError as lost:
            raise DeviceLost(f"{error}; {lost}") from error
        raise


def _no_probe(device: torch.device) -> None:
    """CPUs are never lost."""


class ModelRunner:
    """The runner of a Mllama model on one device. The model is its own from then on: weights may be packed."""

    def __init__(
        self,
        model: Mllama,
        num_pages: int,
        page_size: int,
        num_tiles: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        pack_linears(model.text)
        self._model = model
        self._dtype = dtype
        self._device = device
        config = model.config
        text = config.text
        self._planner = Planner(
            page_size=page_size, tile_size=config.vision.tokens_per_tile, dtype=dtype, device=device
        )
        spare_slot = num_pages * page_size
        self._text = SlotCache(text.num_self_layers, spare_slot + page_size, text, dtype, device)
        self._seen = SlotCache(len(text.cross_layers), num_tiles * self._planner.tile_size, text, dtype, device)
        self._frequencies = rotary_frequencies(text.rope, text.head_dim, device)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (config.image_mean, config.image_std)
        )
        self._images: dict[ImageKey, tuple[ImageInput, Tensor]] = {}
        self._encoding: dict[ImageKey, Slices[Tensor]] = {}
        self._slice_operations = _SLICE_OPERATIONS[device.type]
        self._graphs = self._try_graphs(spare_slot)

    @staticmethod
    def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
        """How much memory one page takes."""
        return page_size * SlotCache.slot_bytes(config.text.num_self_layers, config.text, dtype)

    @staticmethod
    def tile_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
        """How much memory the states of one tile take."""
        return config.vision.tokens_per_tile * SlotCache.slot_bytes(len(config.text.cross_layers), config.text, dtype)

    @torch.inference_mode()
    def _try_graphs(self, spare_slot: int) -> DecodeGraphs | None:
        """Recordings of decode steps, where the device makes them. One token alone is tried.

        Raises whatever goes wrong with computing it.
        """
        if self._device.type not in _RECORDERS:
            return None
        graphs = DecodeGraphs(self._hidden, _RECORDERS[self._device.type](), self._planner, spare_slot)
        row = Row(
            tokens=(0,),
            start=0,
            pages=(0,),
            sampling=SamplingParams(),
            choices=(0,),
            image_tiles=(),
            image_positions=(),
        )
        if graphs.hidden([row]) is None:
            log.warning("no decode steps are recorded, so each launches its operations one by one, which is slower")
            return None
        return graphs

    def take_image(self, image: ImageInput) -> None:
        tile = self._model.config.vision.tile_size
        with shared_pixels(image, tile) as pixels:
            view = torch.frombuffer(pixels, dtype=torch.uint8).view(image.num_tiles, 3, tile, tile)
            self._images[image.key] = (image, view.clone())
            del view  # the memory cannot be closed while a tensor looks at it

    def drop_image(self, key: ImageKey) -> None:
        del self._images[key]
        self._encoding.pop(key, None)

    @torch.inference_mode()
    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        with _noticing_lost_devices(self._device):
            return self._encode_slices(key, tiles)

    def _encode_slices(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        if key not in self._encoding:
            self._encoding[key] = self._encode(*self._images[key])
        spent = 0
        while spent < self._slice_operations:
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
        pixels = (tiles.to(self._device).float() / 255 - self._mean) / self._std
        vision = self._model.vision
        encoded = (yield from vision(pixels.to(self._dtype)[None], image.rows, image.columns, _SLICE_TOKENS))[0]
        if not encoded.isfinite().all():
            raise FloatingPointError("the states of an image are not finite")
        pieces = []
        for piece in torch.split(encoded, _SLICE_TOKENS):
            pieces.append(torch.stack([layer.image_states(piece) for layer in self._model.text.cross_layers]))
            yield 2 * piece.numel() * pieces[-1][:, :, :, 0].numel()
        return torch.cat(pieces, dim=3)

    def _keep_states(self, states: Tensor, tiles: Sequence[int]) -> None:
        """Puts states [cross layers, 2, kv_heads, tokens, head_dim] where rows will look for them."""
        slots = torch.from_numpy(places(tiles, self._planner.tile_size)).to(self._device)
        for layer, (k, v) in enumerate(states.transpose(2, 3)):
            self._seen.write(layer, slots, k, v)

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            self._text.copy(pairs, self._planner.page_size)

    @torch.inference_mode()
    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        with _noticing_lost_devices(self._device):
            return self._execute(rows)

    def _execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        sampled = [i for i, row in enumerate(rows) if row.choices]
        outputs = [RowOutput()] * len(rows)
        hidden = self._graphs.hidden(rows) if self._graphs else None
        if hidden is not None:
            hidden = hidden[sampled]
        else:
            plan = self._planner.batch(rows)
            states = self._hidden(plan)
            hidden = states[plan.last[sampled]]
            for i, row in enumerate(rows):
                if row.prompt_targets:
                    begin = int(plan.last[i]) + 1 - len(row.tokens)
                    outputs[i] = RowOutput(
                        prompt_logprobs=self._prompt_logprobs(row, states[begin + row.prompt_logprobs_start :])
                    )
        if not sampled:
            return outputs
        logits = self._model.text.logits(hidden)
        finite = logits.sum(dim=-1).isfinite().tolist()
        logits = logits if all(finite) else logits.nan_to_num()
        draws = [
            Draw(row=at, params=rows[i].sampling, choice=choice, position=rows[i].end)
            for at, i in enumerate(sampled)
            for choice in rows[i].choices
        ]
        processed, failed = process_logits(logits, [rows[i] for i in sampled])
        tokens = iter(sample(processed, draws))
        for at, i in enumerate(sampled):
            chosen = tuple(next(tokens) for _ in rows[i].choices)
            if not finite[at] or at in failed:
                outputs[i] = RowOutput(error=failed.get(at, "the logits are not finite"), by_grammar=at in failed)
                continue
            logprobs: tuple[Logprobs, ...] = ()
            if (top := rows[i].top_logprobs) is not None:
                logprobs = tuple(logprobs_of(logits[at].expand(len(chosen), -1), chosen, top))
            outputs[i] = RowOutput(tokens=chosen, logprobs=logprobs, prompt_logprobs=outputs[i].prompt_logprobs)
        return outputs

    def _prompt_logprobs(self, row: Row, states: Tensor) -> tuple[Logprobs, ...]:
        """Probabilities of the tokens that follow the first of `states`, a few at once: logits are large."""
        found: list[Logprobs] = []
        for begin in range(0, len(row.prompt_targets), _PROMPT_LOGITS_ROWS):
            tokens = row.prompt_targets[begin : begin + _PROMPT_LOGITS_ROWS]
            logits = self._model.text.logits(states[begin : begin + len(tokens)])
            found += logprobs_of(logits, tokens, row.top_logprobs or 0)
        return tuple(found)

    @torch.inference_mode()
    def logits(self, row: Row) -> Tensor:
        """Logits of every token of a row, float32 [tokens, vocabulary]: for comparisons with a reference."""
        return self._model.text.logits(self._hidden(self._planner.batch([row])))

    def _hidden(self, plan: BatchPlan) -> Tensor:
        cos, sin = rotary_angles(plan.positions, self._frequencies)
        views = BatchViews(self._seen, plan.cross) if plan.cross else None
        hidden: Tensor = self._model.text(plan.tokens, BatchMemory(self._text, plan), views, cos, sin)
        return hidden
