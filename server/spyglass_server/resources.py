"""The parts of the server that every generation shares."""

import asyncio
import logging
from concurrent import futures
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.cancellation import to_the_end
from spyglass_common.fair_slots import FairSlots
from spyglass_server.admission import Admission
from spyglass_server.auth import ApiKey, Keys
from spyglass_server.codec.chat import ImageLimits, ImageSize
from spyglass_server.codec.start import Spec
from spyglass_server.config import Prices
from spyglass_server.constraints.grammar import calls_grammar, to_grammar
from spyglass_server.engine.handle.async_engine import AsyncEngine
from spyglass_server.engine.messages import ImageKey
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.errors import ModelNotFound, SpyglassError, Unavailable
from spyglass_server.image_decoder import ImageDecoder
from spyglass_server.images import ImageTiles, lay_out
from spyglass_server.ledger import Ledger
from spyglass_server.metrics import Metrics
from spyglass_server.panics import panics_as_errors
from spyglass_server.prompt import Prompt, PromptMaker
from spyglass_server.prompt.prompt_maker import ChatInput
from spyglass_server.quotas import Quotas
from spyglass_server.replays import Replays
from spyglass_server.report import Observer, Report

log = logging.getLogger(__name__)

_NUM_SHAPES = 2
_LOADING_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What every generation uses."""

    engine: AsyncEngine
    prompts: PromptMaker
    ledger: Ledger
    keys: Keys
    admission: Admission
    quotas: Quotas
    replays: Replays
    metrics: Metrics
    observers: tuple[Observer, ...]
    workers: futures.Executor
    slots: FairSlots
    """For work in `workers`."""
    shapes: FairSlots = field(default_factory=lambda: FairSlots(_NUM_SHAPES, share=_NUM_SHAPES // 2))
    """For checking the shapes of answers: each keeps a core busy, some for a third of a second."""
    decoder: ImageDecoder
    served_names: tuple[str, ...]
    image_limits: ImageLimits
    prices: Prices
    request_timeout_s: float

    def observe(self, report: Report) -> None:
        """Reports an ended generation to all observers; their failures do not affect it."""
        for observer in self.observers:
            try:
                observer(report)
            except Exception:
                log.exception("a generation's end could not be reported")

    def models_of(self, key: ApiKey) -> tuple[str, ...]:
        """The names of the models that a key may use.

        Raises:
            Unavailable: the model has not been loaded yet.
        """
        if not self.engine.has_info:
            raise Unavailable("the model is being loaded", reason="model_loading", retry_after_s=_LOADING_RETRY_S)
        return tuple(name for name in self.served_names if not key.models or name in key.models)

    def resolve_model(self, name: str, key: ApiKey) -> str:
        """The name that a generation is billed under.

        Raises:
            ModelNotFound: no such model is served, or not to this key.
        """
        names = self.models_of(key)
        if (name or self.served_names[0]) not in names and (name or not names):
            raise ModelNotFound(f"the model {name or self.served_names[0]!r} is not served here", field="model")
        return name or names[0]

    async def prepare(self, spec: Spec, images: list[bytes], tenant: str) -> tuple[Prompt, str]:
        """Makes the prompt, and the answer's grammar if it must have a shape; tenants take turns."""

        @panics_as_errors()
        def work() -> tuple[Prompt, str]:
            grammar = ""
            if spec.shape:
                grammar = to_grammar(spec.shape)
            elif spec.tool_use and spec.tool_use.needs_grammar:
                grammar = calls_grammar(spec.tool_use.tools, spec.tool_use.must_call, spec.tool_use.several)
            prompt = self.prompts.write(spec.input, self.engine.info.max_tokens)
            return replace(prompt, prediction=self.prompts.expect(spec.prediction)), grammar

        has_shape = bool(spec.shape or (spec.tool_use and spec.tool_use.needs_grammar))
        async with self.shapes.hold(tenant) if has_shape else nullcontext(), self.slots.hold(tenant):
            prompt, grammar = await asyncio.get_running_loop().run_in_executor(self.workers, work)
        if images:
            prompt = replace(prompt, images=await self._decode(spec, images, tenant))
        return prompt, grammar

    async def lay_out(self, spec: Spec, tenant: str) -> list[pb.ImageLayout]:
        """Returns how the model sees a conversation's images, given their data or their sizes.

        Raises:
            InvalidImage: an image cannot be used.
        """
        if not isinstance(spec.input, ChatInput):
            return []
        layouts = []
        for image, slot in zip(spec.images, spec.input.images, strict=True):
            wanted = self.prompts.image_spec(slot)
            if isinstance(image, ImageSize):
                self.prompts.check_size(image.width, image.height, slot)
                columns, rows, width, height = lay_out(image.width, image.height, wanted)
            else:
                assert image is not None
                tiles = await self.decoder.tiles(image, wanted, tenant=tenant, field=slot.field)
                columns, rows, width, height = tiles.columns, tiles.rows, tiles.width, tiles.height
            layouts.append(
                pb.ImageLayout(
                    tile_size=wanted.tile_size, rows=rows, columns=columns, picture_width=width, picture_height=height
                )
            )
        return layouts

    async def _decode(self, spec: Spec, images: list[bytes], tenant: str) -> tuple[ImageTiles, ...]:
        assert isinstance(spec.input, ChatInput)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self.decoder.tiles(data, self.prompts.image_spec(slot), tenant=tenant, field=slot.field)
                    )
                    for data, slot in zip(images, spec.input.images, strict=True)
                ]
        except* SpyglassError as errors:
            raise errors.exceptions[0] from None
        return tuple(task.result() for task in tasks)

    async def share(self, tiles: SharedImages, prompt: Prompt, tenant: str) -> None:
        """Copies a prompt's images into shared memory, in a worker thread.

        Raises:
            Unavailable: there is no room for them.
        """
        if not prompt.images:
            return
        images = [
            (ImageKey(tenant, image.digest), image.rows, image.columns, image.pixels.data) for image in prompt.images
        ]
        job = self.workers.submit(tiles.copy, images)
        try:
            await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancelled():  # it is running: its memory must not be freed under it
                await to_the_end(asyncio.to_thread(futures.wait, [job]))
            raise
        except OSError as error:
            log.error("no shared memory for images: %s", error)
            raise Unavailable("there is no room for images now", reason="no_image_memory", retry_after_s=1.0) from error
