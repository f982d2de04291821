"""What the encoder is asked about a picture while it learns: tiles and targets as arrays.

Owns the targets of every patch and of the whole picture. Knows nothing of networks.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from spyglass_demo import adapter
from spyglass_training.drawing.paint import Region, paint
from spyglass_training.drawing.scenes import SCENES, Scene, draw_lots, draw_size
from spyglass_training.served import ImageSpec, choose_canvas, tile_image
from spyglass_training.world import COLOURS, SHAPES, SIDES, WORDS

SPEC = ImageSpec(adapter.TILE_SIZE, adapter.MAX_TILES)
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
KINDS_OF_THING = (*SHAPES, "text")
MAX_THINGS = 4
WHOLE = MAX_THINGS
"""Stands for the picture as a whole where others stand for its things: class tokens show it."""
MAX_DIGITS = 3
CELLS = 4
"""Along each side of a patch: how finely the outline of what lies there is told."""
NO_LABEL = -100
"""What torch's cross entropy ignores."""
_LONGEST = 320  # pixels; larger pictures look the same on the largest canvas

Labels = dict[str, NDArray[np.int64] | NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture on its canvas: uint8 [tiles, 3, tile, tile], and the targets."""

    canvas: tuple[int, int]  # (columns, rows)
    pixels: NDArray[np.uint8]
    labels: Labels


def draw_canvas(rng: Random) -> tuple[int, int]:
    """The canvas, (columns, rows), of a random picture."""
    return choose_canvas(*draw_size(rng, _LONGEST), SPEC)


def draw_picture(
    kind: str, rng: Random, canvas: tuple[int, int] | None = None, easy: bool = False
) -> tuple[Image.Image, Scene, list[Region]]:
    """A picture of a kind of scene, for a certain canvas if one is given."""
    while True:
        size = draw_size(rng, _LONGEST)
        if canvas in (None, choose_canvas(*size, SPEC)):
            return paint(draw_lots(kind, *size, rng, easy), rng, easy)


def draw_sample(kind: str, rng: Random, canvas: tuple[int, int], easy: bool = False) -> Sample:
    """A picture with its targets."""
    picture, scene, regions = draw_picture(kind, rng, canvas, easy)
    tiles = tile_image(picture, SPEC)
    return Sample(canvas, tiles.pixels, {**_of_patches(scene, regions, canvas), **_of_picture(scene)})


def _of_patches(scene: Scene, regions: list[Region], canvas: tuple[int, int]) -> Labels:
    """Targets of every patch [tiles * patches, …], tile by tile."""
    owner, character = (_by_patch(image, canvas) for image in _maps(scene, regions, canvas))
    who = _owners(owner)
    things = scene.things
    kinds = [_kind(thing.name, thing.is_text) + 1 for thing in things]
    scale = _scale(scene, canvas)
    at = _patch_centres(canvas)
    centres = np.array([(t.x * scale, t.y * scale) for t in things] or [(0, 0)], np.float32)
    offset = (centres[who] - at) / adapter.TILE_SIZE
    reach = np.array([math.log(t.reach * scale / adapter.TILE_SIZE) for t in things] or [0], np.float32)[who]
    labels: Labels = {
        "occupied": (owner > 0).astype(np.float32),
        "kind": _look_up(kinds, who, none=0),
        "character": np.where(who >= 0, _most_frequent(character), 0),
        "colour": _look_up([COLOURS.index(t.colour) for t in things], who),
        "place": np.concatenate([offset, reach[:, None]], axis=-1),
        "has_place": (who >= 0).astype(np.float32),
    }
    shapes = [t for t in things if not t.is_text]
    labels["like_kind"] = _look_up([sum(o.name == t.name for o in shapes) - 1 for t in shapes], who)
    labels["like_colour"] = _look_up([sum(o.colour == t.colour for o in shapes) - 1 for t in shapes], who)
    labels["part_of_word"] = _look_up([WORDS.index(t.name.lower()) for t in things if scene.kind == "word"], who)
    pair = len(things) == 2
    sides = [SIDES.index(scene.side(a, b)) for a, b in (things, things[::-1])] if pair and scene.is_clear() else []
    labels["side"] = _look_up(sides, who)
    labels["other_kind"] = _look_up(kinds[::-1] if pair else [], who)
    labels["other_colour"] = _look_up([COLOURS.index(t.colour) for t in things[::-1]] if pair else [], who)
    return labels


def owners(scene: Scene, regions: list[Region], canvas: tuple[int, int]) -> NDArray[np.int64]:
    """The place of the thing that each token of a picture shows, WHOLE or -1: [tiles * tokens], tile by tile."""
    patches = _owners(_by_patch(_maps(scene, regions, canvas)[0], canvas)).reshape(canvas[0] * canvas[1], -1)
    return np.pad(patches, ((0, 0), (1, 0)), constant_values=WHOLE).ravel()


def _owners(owner: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The thing on at least a quarter of each patch's cells, or -1."""
    share = np.stack([(owner == i + 1).sum(-1) for i in range(MAX_THINGS)], axis=-1)
    return np.where(share.max(-1) >= CELLS, share.argmax(-1), -1)


def _of_picture(scene: Scene) -> Labels:
    """Targets of the class tokens; things are in reading order along the longer side."""
    order = sorted(scene.things, key=lambda t: t.x if scene.width >= scene.height else t.y)
    text = scene.things[0].name if scene.things and scene.things[0].is_text else ""
    digits = [int(digit) for digit in text] if text.isdigit() else []
    blank = [NO_LABEL] * MAX_DIGITS
    return {
        "scene": np.array(SCENES.index(scene.kind)),
        "count": np.array(0 if text else len(scene.things)),
        "ground": np.array(COLOURS.index(scene.ground.name) if scene.ground.name and scene.things else NO_LABEL),
        "word": np.array(WORDS.index(text.lower()) if scene.kind == "word" else NO_LABEL),
        "digits": np.array((digits + blank)[:MAX_DIGITS]),
        "slot_kind": np.array(([_kind(t.name, t.is_text) + 1 for t in order] + [0] * MAX_THINGS)[:MAX_THINGS]),
        "slot_colour": np.array(([COLOURS.index(t.colour) for t in order] + [NO_LABEL] * MAX_THINGS)[:MAX_THINGS]),
    }


def _maps(scene: Scene, regions: list[Region], canvas: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Whose each cell is, and which character's, both counted from 1."""
    cell = adapter.PATCH_SIZE // CELLS
    size = canvas[0] * adapter.TILE_SIZE // cell, canvas[1] * adapter.TILE_SIZE // cell
    owner, character = Image.new("L", size), Image.new("L", size)
    on_owner, on_character = ImageDraw.Draw(owner), ImageDraw.Draw(character)
    scale = _scale(scene, canvas) / cell
    for region in regions:
        polygon = [(x * scale - 0.5, y * scale - 0.5) for x, y in region.polygon]
        on_owner.polygon(polygon, fill=region.thing + 1)
        if region.character:
            on_character.polygon(polygon, fill=CHARACTERS.index(region.character.lower()) + 1)
    return owner, character


def _scale(scene: Scene, canvas: tuple[int, int]) -> float:
    """From the picture's pixels to the canvas's."""
    tile = adapter.TILE_SIZE
    return min(
        min(max(scene.width, tile), canvas[0] * tile) / scene.width,
        min(max(scene.height, tile), canvas[1] * tile) / scene.height,
    )


def _by_patch(image: Image.Image, canvas: tuple[int, int]) -> NDArray[np.uint8]:
    """Cells of a map as [tiles * patches, CELLS * CELLS]."""
    columns, rows = canvas
    side = adapter.TILE_SIZE // adapter.PATCH_SIZE
    cells = np.asarray(image).reshape(rows, side, CELLS, columns, side, CELLS)
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(-1, CELLS * CELLS)


def _patch_centres(canvas: tuple[int, int]) -> NDArray[np.float32]:
    """The middle of every patch on the canvas, in pixels: [tiles * patches, 2]."""
    columns, rows = canvas
    side = adapter.TILE_SIZE // adapter.PATCH_SIZE
    row, y, column, x = np.meshgrid(
        np.arange(rows), np.arange(side), np.arange(columns), np.arange(side), indexing="ij"
    )
    centres = np.stack([column * side + x, row * side + y], axis=-1) * adapter.PATCH_SIZE + adapter.PATCH_SIZE / 2
    return centres.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.float32)


def _look_up(values: list[int], who: NDArray[np.int64], none: int = NO_LABEL) -> NDArray[np.int64]:
    """Each patch's thing's value; `none` where there is no thing, or no values at all."""
    if not values:
        return np.full(who.shape, none)
    return np.where(who >= 0, np.array(values)[who], none)


def _most_frequent(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = (cells[:, :, None] == np.arange(len(CHARACTERS) + 1, dtype=np.uint8)).sum(1)
    counts[:, 0] = 0
    best: NDArray[np.int64] = counts.argmax(-1)
    return best


def _kind(name: str, is_text: bool) -> int:
    return KINDS_OF_THING.index("text" if is_text else name)
