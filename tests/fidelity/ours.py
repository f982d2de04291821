"""Spyglass's side of the comparisons: the real loader, image path and runner, in this process.

$SPYGLASS_TEST_DEVICE, "cpu" when not set, is the device on which it computes; the references stay on the CPU.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spyglass_server.engine.messages import EngineRequest, ImageKey, SamplingParams
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import Row
from spyglass_server.images import tile_image
from spyglass_server.prompt.files import read_prompt_files
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.runner import ModelRunner

PAGE_SIZE = 16
NUM_TILES = 128


@dataclass(frozen=True)
class Ours:
    """A loaded checkpoint."""

    runner: ModelRunner
    folder: Path
    tiles: dict[ImageKey, tuple[int, ...]] = field(default_factory=dict)
    """Where the states of the images stand that it has seen."""

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, num_pages: int = 64) -> "Ours":
        device = torch.device(os.environ.get("SPYGLASS_TEST_DEVICE", "cpu"))
        model = load_model(folder, load_config(folder), dtype, device)
        return cls(ModelRunner(model, num_pages, PAGE_SIZE, NUM_TILES, dtype, device), folder)

    def row(
        self, token_ids: list[int], images: list[Image.Image], choices: tuple[int, ...] = (), **request_fields: Any
    ) -> Row:
        """Encodes the images and lays out the prompt as one row."""
        files = read_prompt_files(self.folder)
        tiles = [tile_image(image, files.image_spec) for image in images]
        shared = SharedImages()
        try:
            shared.copy((ImageKey("test", t.digest), t.rows, t.columns, t.pixels.data) for t in tiles)
            for image in shared.inputs:
                if image.key not in self.tiles:
                    first = sum(map(len, self.tiles.values()))
                    self.tiles[image.key] = tuple(range(first, first + image.num_tiles))
                    self.runner.take_image(image)
                    while not self.runner.encode_image(image.key, self.tiles[image.key]):
                        pass
        finally:
            shared.release()
        request = EngineRequest(
            id=0,
            tokens=tuple(token_ids),
            max_tokens=1,
            sampling=SamplingParams(temperature=0.0),
            images=tuple(shared.inputs),
            image_positions=tuple(i for i, token in enumerate(token_ids) if token == files.image_token_id),
            **request_fields,
        )
        return Row(
            request=request,
            tokens=tuple(token_ids),
            start=0,
            pages=tuple(range(-(-len(token_ids) // PAGE_SIZE))),
            choices=choices,
            image_tiles=tuple(self.tiles[image.key] for image in shared.inputs),
        )

    def logits(self, token_ids: list[int], images: list[Image.Image]) -> torch.Tensor:
        """Logits of every prompt position, float32 [tokens, vocabulary]."""
        return self.runner.logits(self.row(token_ids, images)).cpu()


def prompt_logits(
    folder: Path, token_ids: list[int], images: list[Image.Image], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits of every prompt position of a checkpoint, float32 [tokens, vocabulary]."""
    return Ours.load(folder, dtype).logits(token_ids, images)
