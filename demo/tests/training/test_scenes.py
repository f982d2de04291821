"""Scenes by lot, and what the training says of them."""

import math
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spyglass_training.drawing.scenes import SCENES, draw_lots, draw_size
from spyglass_training.learning.labels import WHOLE
from spyglass_training.learning.views import PictureViews


@given(st.sampled_from((*SCENES, "varied")), st.integers(0, 10**6), st.booleans())
def test_things_lie_apart_and_inside(kind: str, seed: int, easy: bool) -> None:
    rng = Random(seed)
    scene = draw_lots(kind, *draw_size(rng, 1500), rng, easy)
    shapes = [thing for thing in scene.things if not thing.is_text]
    for number, thing in enumerate(shapes):
        assert thing.reach <= thing.x <= scene.width - thing.reach
        assert thing.reach <= thing.y <= scene.height - thing.reach
        for other in shapes[:number]:
            assert math.hypot(thing.x - other.x, thing.y - other.y) > thing.reach + other.reach


@given(st.integers(0, 10**6))
def test_varied_scenes_have_two_shapes_and_two_colours(seed: int) -> None:
    """So that no question about one of them can be answered by counting all."""
    rng = Random(seed)
    scene = draw_lots("varied", *draw_size(rng, 1500), rng)
    assert scene.kind == "several"
    assert 2 <= len(scene.things) <= 4
    assert len(Counter(thing.name for thing in scene.things)) == 2
    assert len(Counter(thing.colour for thing in scene.things)) == 2


@pytest.mark.parametrize(
    ("looks", "first", "second"),
    [
        (0b1, [1], [1]),
        (0b11, [1, 2], [1, 2]),
        (0b1 | 1 << WHOLE, [1], [0]),
        (1 << WHOLE, [0], [0]),
    ],
)
def test_each_group_of_heads_is_told_where_to_look(looks: int, first: list[int], second: list[int]) -> None:
    """A picture of three tokens: its class token, thing 0, thing 1. Heads that look there miss nothing."""
    owners = torch.tensor([[WHOLE, 0, 1]])
    keys = torch.eye(3)[None, None].expand(1, 3, 1, 3, 3)  # [layers, groups of heads, images, tokens, head_dim]
    states = torch.stack((keys, keys), dim=1)
    views = PictureViews(torch.tensor([0]), states)
    views.watch(torch.tensor([looks]), owners)
    right, wrong = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    for group, seen in enumerate((first, second)):
        right[0, group, seen] = 100.0
        wrong[0, group] = 100.0 - right[0, group]
    views.attend(0, right)
    views.attend(0, wrong)
    assert views.misses[0] < 0.01 < 10 < views.misses[1]
