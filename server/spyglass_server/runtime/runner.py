"""Executes what the scheduler has decided: batches of rows, images, page copies.

A batch goes through three functions: rows become a plan of tensors, the forward pass turns the plan into logits, and
tokens are sampled from these. Only the forward pass touches the model and its caches.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spyglass_server.engine.messages import EngineRequest, ImageInput, ImageKey, Logprobs
from spyglass_server.engine.shared_images import shared_pixels
from spyglass_server.engine.worker.batch import DeviceLost, Row, RowOutput
from spyglass_server.runtime.attention import BatchCrossCache, BatchKVCache, SlotCache
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.graphs import DecodeGraphs, Record, record_cuda
from spyglass_server.runtime.linear import pack_linears
from spyglass_server.runtime.logits_processors import process_logits
from spyglass_server.runtime.model.layers import rotary_angles, rotary_frequencies
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.model.vision import Slices
from spyglass_server.runtime.plan import BatchPlan, Planner, PromptTargets, places
from spyglass_server.runtime.sampler import Draw, TopLogprobs, sample, top_logprobs

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """What a plan asks for: logits [sampled rows, vocabulary], None where there are none, and prompt logprobs."""

    logits: Tensor | None
    prompts: tuple[TopLogprobs, ...]


class ModelRunner:
    """The runner of a Mllama model on one device. The model is its own from then on: weights may be packed."""

    def __init__(
        self, model: Mllama, num_pages: int, page_size: int, num_tiles: int, dtype: torch.dtype, device: torch.device
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
        self._kv_cache = SlotCache(text.num_self_layers, spare_slot + page_size, text, dtype, device)
        self._cross_cache = SlotCache(len(text.cross_layers), num_tiles * self._planner.tile_size, text, dtype, device)
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
        rows = [Row(request=EngineRequest(id=0, tokens=(0,), max_tokens=1), tokens=(0,), start=0, pages=(0,))]
        if plan := graphs.plan(rows):
            graphs.hidden(plan)
        if graphs.plan(rows) is None:
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
            self._cross_cache.write(layer, slots, k, v)

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            self._kv_cache.copy(pairs, self._planner.page_size)

    @torch.inference_mode()
    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        with _noticing_lost_devices(self._device):
            return _sample(rows, self.forward(self.plan(rows)))

    def plan(self, rows: Sequence[Row]) -> BatchPlan:
        """Lays out rows as a batch, in a recorded shape where one suits."""
        plan = self._graphs.plan(rows) if self._graphs else None
        return plan or self._planner.batch(rows)

    @torch.inference_mode()
    def forward(self, plan: BatchPlan) -> ForwardOutput:
        """Computes a plan. Another runner of the same model that computes the same plans holds the same caches."""
        hidden = self._graphs.hidden(plan) if self._graphs and plan.shape else self._hidden(plan)
        return ForwardOutput(
            logits=self._model.text.logits(hidden[plan.sampled]) if len(plan.sampled) else None,
            prompts=tuple(self._prompt_logprobs(targets, hidden) for targets in plan.prompts),
        )

    def _prompt_logprobs(self, targets: PromptTargets, hidden: Tensor) -> TopLogprobs:
        """Logprobs of prompt tokens, a few at once: logits are large."""
        states = hidden[targets.begin : targets.begin + len(targets.tokens)]
        pieces = zip(
            torch.split(states, _PROMPT_LOGITS_ROWS), torch.split(targets.tokens, _PROMPT_LOGITS_ROWS), strict=True
        )
        found = [top_logprobs(self._model.text.logits(some), tokens, targets.top) for some, tokens in pieces]
        return TopLogprobs(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    @torch.inference_mode()
    def logits(self, row: Row) -> Tensor:
        """Logits of every token of a row, float32 [tokens, vocabulary]: for comparisons with a reference."""
        return self._model.text.logits(self._hidden(self._planner.batch([row])))

    def _hidden(self, plan: BatchPlan) -> Tensor:
        cos, sin = rotary_angles(plan.positions, self._frequencies)
        images = BatchCrossCache(self._cross_cache, plan.cross) if plan.cross else None
        hidden: Tensor = self._model.text(plan.tokens, BatchKVCache(self._kv_cache, plan), images, cos, sin)
        return hidden


def _sample(rows: Sequence[Row], output: ForwardOutput) -> list[RowOutput]:
    """Chooses the tokens of each row's choices."""
    prompts = iter(output.prompts)
    outputs = [RowOutput(prompt_logprobs=next(prompts).to_messages() if row.prompt_targets else ()) for row in rows]
    logits, sampled = output.logits, [i for i, row in enumerate(rows) if row.choices]
    if logits is None:
        return outputs
    finite = logits.sum(dim=-1).isfinite().tolist()
    logits = logits if all(finite) else logits.nan_to_num()
    draws = [
        Draw(row=at, params=rows[i].request.sampling, choice=choice, position=rows[i].end)
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
        outputs[i] = replace(outputs[i], tokens=chosen, logprobs=_logprobs(rows[i], logits[at], chosen))
    return outputs


def _logprobs(row: Row, logits: Tensor, chosen: Sequence[int]) -> tuple[Logprobs, ...]:
    """Logprobs of a row's chosen tokens by its logits [vocabulary], if it asks for them."""
    if (top := row.request.top_logprobs) is None:
        return ()
    tokens = torch.tensor(chosen, device=logits.device)
    return top_logprobs(logits.expand(len(chosen), -1), tokens, top).to_messages()
