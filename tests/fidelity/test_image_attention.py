"""What is told of the attention to images equals the weights of the reference, patch by patch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fidelity.ours import Ours
from fidelity.prompts import PROMPTS
from fidelity.transformers_model import TransformersModel, corrected
from simulated_gpu import simulated_gpu
from spyglass_server.engine.messages import ImageMap
from spyglass_server.images import tile_image
from spyglass_server.prompt.files import read_prompt_files

WITH_IMAGES = [name for name, prompt in PROMPTS.items() if prompt.sizes]


@pytest.mark.parametrize("layers", [(), (1,)])
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_maps_are_the_weights_of_the_reference(
    checkpoint: Path, transformers_model: TransformersModel, name: str, layers: tuple[int, ...]
) -> None:
    ids, images = PROMPTS[name].token_ids(), PROMPTS[name].images()
    with corrected():
        by_layer = transformers_model.image_attention(ids, images)
    wanted = torch.stack([by_layer[layer] for layer in layers] or by_layer).mean(dim=0).numpy()
    ours = Ours.load(checkpoint)
    [output] = ours.runner.execute([ours.row(ids, images, (0,), attention_tokens=1, attention_layers=layers)])
    assert output.attention is not None
    spec = read_prompt_files(checkpoint).image_spec
    total = 0.0
    for found, expected, image in zip(output.attention, wanted, images, strict=True):
        tiles = tile_image(image, spec)
        if found is None:
            assert expected.max() < 1e-6
            continue
        side = round((expected.shape[1] - 1) ** 0.5)
        own = expected[: tiles.rows * tiles.columns]
        canvas = own[:, 1:].reshape(tiles.rows, tiles.columns, side, side).transpose(0, 2, 1, 3)
        np.testing.assert_allclose(weights(found), canvas.ravel(), rtol=0, atol=found.scale / 255)
        assert found.scale == pytest.approx(canvas.max(), rel=1e-3)
        total += weights(found).sum() + own[:, 0].sum()
    assert total == pytest.approx(1, abs=0.02)


def test_kernels_tell_the_same_maps(checkpoint: Path) -> None:
    ids, images = PROMPTS["an image, then two"].token_ids(), PROMPTS["an image, then two"].images()

    def maps() -> list[np.ndarray]:
        ours = Ours.load(checkpoint)
        [output] = ours.runner.execute([ours.row(ids, images, (0,), attention_tokens=1)])
        assert output.attention is not None
        assert output.attention[0] is None
        return [weights(one) for one in output.attention if one is not None]

    on_cpu = maps()
    with simulated_gpu():
        for one, other in zip(maps(), on_cpu, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2 * other.max() / 255)


def weights(found: ImageMap) -> np.ndarray:
    """The attention to each patch."""
    return np.frombuffer(found.data, np.uint8) * (found.scale / 255)
