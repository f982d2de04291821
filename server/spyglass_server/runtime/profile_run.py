"""Measures what the largest work takes besides weights and caches, with the loaded model and small caches."""

from dataclasses import dataclass
from functools import partial

import torch

from spyglass_server.engine.messages import EngineRequest, ImageKey, SamplingParams
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import Row
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.planning.memory import CacheSizes, CacheUnits
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.probe import MemoryProbe
from spyglass_server.runtime.runner import ModelRunner

_SAMPLING = SamplingParams(top_p=0.9, seed=1)
"""With a filter, which takes memory."""
_KEY = ImageKey("", b"profile run")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRun:
    """A trial of the largest image and of the largest step within `limits`, in sequences of `context` tokens."""

    model: Mllama
    limits: Limits
    context: int
    units: CacheUnits
    dtype: torch.dtype
    device: torch.device

    def measure(self, probe: MemoryProbe) -> int:
        """Returns the maximum bytes of a step while an image is encoded, including what is kept between steps for both.

        An image is encoded in pieces between steps, so its memory counts in addition to a step's.
        """
        sizes = CacheSizes(num_pages=self._num_pages, num_tiles=self.units.image_tiles)
        before = probe.allocated()
        runner = ModelRunner(
            self.model,
            sizes.num_pages,
            self.units.page_size,
            sizes.num_tiles,
            self.dtype,
            self.device,
            max_batch=self.limits.max_batch,
            max_tokens=self.context,
            records_steps=False,
        )
        kept = probe.allocated() - before - sizes.nbytes(self.units)
        image = probe.peak_of(partial(self._encode, runner))
        step = probe.peak_of(partial(self._compute, runner))
        del runner
        probe.release()
        return max(0, kept) + image + step

    @property
    def _num_pages(self) -> int:
        """Enough pages for each token of a step to have its own slot."""
        return self.limits.max_step_tokens // self.units.page_size + 2

    def _encode(self, runner: ModelRunner) -> None:
        """Encodes the largest image, which is grey."""
        vision = self.model.config.vision
        rows, columns = max(vision.aspect_ratios, key=lambda ratio: ratio[0] * ratio[1])
        pixels = bytes([128]) * (rows * columns * 3 * vision.tile_size**2)
        shared = SharedImages()
        try:
            shared.copy([(_KEY, rows, columns, memoryview(pixels))])
            runner.take_image(shared.inputs[0])
        finally:
            shared.release()
        while not runner.encode_image(_KEY, range(rows * columns)):
            pass
        runner.drop_image(_KEY)

    def _compute(self, runner: ModelRunner) -> None:
        """Computes a step with the maximum tokens and rows: prompts at the end of a full context that see an image, and
        decoding rows. The contents of the cache do not matter, nor whether logits are finite."""
        lengths: list[int] = []
        left = self.limits.max_step_tokens
        while left and len(lengths) < self.limits.max_batch:
            spare = self.limits.max_batch - len(lengths) - 1
            lengths.append(max(1, min(left - spare, self.context)))
            left -= lengths[-1]
        runner.execute([self._row(length) for length in lengths])

    def _row(self, length: int) -> Row:
        """Returns a row of the last tokens of a full context, or of the first token of another one."""
        decodes = length == 1
        end = 1 if decodes else self.context
        num_pages = -(-end // self.units.page_size)
        request = EngineRequest(
            id=0, tokens=(0,) * end, max_tokens=1, sampling=_SAMPLING, image_positions=() if decodes else (0,)
        )
        return Row(
            request=request,
            tokens=(0,) * length,
            start=end - length,
            pages=tuple(page % self._num_pages for page in range(num_pages)),
            choices=(0,),
            image_tiles=() if decodes else (tuple(range(self.units.image_tiles)),),
        )
