"""The comparison of logits notices the mistakes that are easily made.

Each is made in our implementation on purpose; the logits must then be far outside the tolerance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fidelity import ours
from fidelity.meta_model import MetaModel
from fidelity.prompts import PROMPTS
from spyglass_server.runtime.config import RopeConfig
from spyglass_server.runtime.cpu import backend, plan
from spyglass_server.runtime.image_spans import ImageSpan, image_spans
from spyglass_server.runtime.model import vision
from spyglass_server.runtime.model.layers import rotary_frequencies
from spyglass_server.runtime.model.vision import Slices, VisionEncoder

NOTICED = 1e-2  # a hundred times the tolerance

Mutation = Callable[[pytest.MonkeyPatch], None]


def vision_states_a_layer_late(patch: pytest.MonkeyPatch) -> None:
    forward = VisionEncoder.forward

    def late(self: VisionEncoder, pixels: torch.Tensor, rows: int, columns: int, size: int) -> Slices[torch.Tensor]:
        layers = tuple(layer + 1 for layer in self.config.intermediate_layers)
        patch.setattr(self, "config", dataclasses.replace(self.config, intermediate_layers=layers))
        return forward(self, pixels, rows, columns, size)

    patch.setattr(VisionEncoder, "forward", late)


def padding_masked_in_the_encoder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vision, "_num_seen", lambda token, num_real, num_tokens: num_real)


def text_before_the_image_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    def spans(positions: Sequence[int], start: int, end: int) -> list[ImageSpan]:
        before = (
            [ImageSpan(start=start, end=positions[0], first=0, last=len(positions))]
            if positions and positions[0] > start
            else []
        )
        return [*before, *image_spans(positions, start, end)]

    patch.setattr(plan, "image_spans", spans)


def image_range_shifted(by: int) -> Mutation:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        def spans(positions: Sequence[int], start: int, end: int) -> list[ImageSpan]:
            return image_spans([position + by for position in positions], start, end)

        patch.setattr(plan, "image_spans", spans)

    return mutate


def rope_unscaled(patch: pytest.MonkeyPatch) -> None:
    def frequencies(config: RopeConfig, head_dim: int, device: torch.device) -> torch.Tensor:
        return rotary_frequencies(dataclasses.replace(config, factor=1.0), head_dim, device)

    patch.setattr(backend, "rotary_frequencies", frequencies)


@pytest.mark.parametrize(
    ("mutate", "name"),
    [
        pytest.param(vision_states_a_layer_late, "one image", id="vision states a layer late"),
        pytest.param(padding_masked_in_the_encoder, "one tile", id="padding masked in the encoder"),
        pytest.param(padding_masked_in_the_encoder, "four tiles", id="padding patches masked in the encoder"),
        pytest.param(text_before_the_image_not_zeroed, "text, image, text", id="text before the image not zeroed"),
        pytest.param(image_range_shifted(1), "text, image, text", id="image range a token late"),
        pytest.param(image_range_shifted(-1), "two images", id="image range a token early"),
        pytest.param(rope_unscaled, "long text", id="RoPE unscaled"),
    ],
)
def test_a_mistake_is_noticed(
    checkpoint: Path, meta_model: MetaModel, monkeypatch: pytest.MonkeyPatch, mutate: Mutation, name: str
) -> None:
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    expected = meta_model.prompt_logits(ids, images)
    assert (ours.prompt_logits(checkpoint, ids, images) - expected).abs().max() < 1e-4
    mutate(monkeypatch)
    assert (ours.prompt_logits(checkpoint, ids, images) - expected).abs().max() > NOTICED
