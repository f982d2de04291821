"""Pictures become the same tiles as in Meta's image_transform."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fidelity.meta_imports import Meta
from fidelity.prompts import picture
from spyglass_server.images import ImageSpec, choose_canvas, decode_image, tile_image

sides = st.integers(1, 3000)


@pytest.fixture(params=[560, 96, 28], ids="tile {}".format, scope="module")
def spec(request: pytest.FixtureRequest) -> ImageSpec:
    return ImageSpec(tile_size=request.param, max_tiles=4)


@pytest.fixture(scope="module")
def transform(meta: Meta, spec: ImageSpec) -> Any:
    return meta.image_transform.VariableSizeImageTransform(size=spec.tile_size)


@settings(max_examples=300)
@given(width=sides, height=sides)
@example(800, 600)
@example(300, 1200)
@example(561, 560)
@example(560, 560)
@example(1, 1)
@example(1, 3000)
@example(3000, 1)
def test_the_canvas_is_metas(transform: Any, spec: ImageSpec, width: int, height: int) -> None:
    canvases = torch.tensor(transform.find_supported_resolutions(spec.max_tiles, spec.tile_size))
    expected = transform.get_best_fit((width, height), canvases)
    columns, rows = choose_canvas(width, height, spec)
    assert (columns * spec.tile_size, rows * spec.tile_size) == expected


def test_the_canvas_examples_of_the_published_tile_size() -> None:
    spec = ImageSpec(tile_size=560, max_tiles=4)
    assert choose_canvas(800, 600, spec) == (2, 2)
    assert choose_canvas(300, 1200, spec) == (1, 3)
    assert choose_canvas(561, 560, spec) == (2, 1)


@settings(max_examples=60)
@given(width=st.integers(1, 1500), height=st.integers(1, 1500), seed=st.integers(0, 9))
@example(800, 600, 0)
@example(100, 400, 1)
@example(7, 5, 2)
def test_the_pixels_are_metas(transform: Any, spec: ImageSpec, width: int, height: int, seed: int) -> None:
    assume(_keeps_a_pixel(width, height, spec))
    image = picture((width, height), seed)
    expected, ratio = transform(image, max_num_chunks=spec.max_tiles, normalize_img=False)
    tiles = tile_image(image, spec)
    assert (tiles.rows, tiles.columns) == tuple(ratio)
    assert np.array_equal(tiles.pixels, (expected * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGB", "JPEG")]
)
def test_other_modes_are_read_as_in_metas_chat_format(mode: str, form: str) -> None:
    buffer = io.BytesIO()
    picture((40, 30)).convert(mode).save(buffer, form)
    expected = Image.open(buffer).convert("RGB")
    assert decode_image(buffer.getvalue(), 1200).tobytes() == expected.tobytes()


def _keeps_a_pixel(width: int, height: int, spec: ImageSpec) -> bool:
    """Slivers that shrink to nothing make Meta's transform raise; ours leaves them a pixel."""
    columns, rows = choose_canvas(width, height, spec)
    room_w = min(max(width, spec.tile_size), columns * spec.tile_size)
    room_h = min(max(height, spec.tile_size), rows * spec.tile_size)
    scale = min(room_w / width, room_h / height)
    return math.floor(min(width, height) * scale) >= 1
