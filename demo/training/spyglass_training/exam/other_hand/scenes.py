"""The second hand's scenes: which objects are on a picture, how they look, and the finished picture.

Owns the choice of shapes, looks and grounds. Knows nothing of questions.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from PIL import Image

from spyglass_training.exam.other_hand import layout
from spyglass_training.exam.other_hand.colours import BLACK, WHITE, Ground, Rgb, contrast, ground, value_of
from spyglass_training.exam.other_hand.drawing import FONTS, Item, Look, Outline, Text, draw, outline
from spyglass_training.exam.other_hand.layout import Box, Canvas, Proportions
from spyglass_training.world import COLOURS, COUNTS, SHAPES

_JPEG_SHARE = 0.25
_GROUND_TRIES = 30
_HOLLOW_FROM_PX = 40
_MAX_TURN = MappingProxyType({"diamond": 6.0})
_MAX_TURN_ELSE = 15.0
_SHADE = MappingProxyType(
    {"orange": 0.1, "yellow": 0.08, "white": 0.06, "black": 0.1, "pink": 0.1, "brown": 0.12, "grey": 0.12}
)
_SHADE_ELSE = 0.22
_ALIKE = (frozenset({"square", "rectangle"}), frozenset({"square", "diamond"}), frozenset({"circle", "oval"}))
"""Shapes that a person may take for each other, or of which one is also the other."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object by its names; a text's name is what it says, in lower case."""

    colour: str
    name: str

    def __str__(self) -> str:
        return f"{self.colour} {self.name}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, what is on it, and the colours that its ground may be called."""

    picture: Image.Image
    things: tuple[Thing, ...]
    ground_names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Coloured:
    """Things with the values of their colours, and a ground on which all are seen."""

    things: tuple[Thing, ...]
    values: tuple[Rgb, ...]
    ground: Ground


def one_shape(rng: Random) -> Scene:
    """A single object."""
    coloured = _coloured(rng, lambda: (Thing(rng.choice(COLOURS), rng.choice(SHAPES)),))
    return _shapes(rng, coloured, lambda picture, shapes: [layout.alone(rng, picture, shapes[0])])


def two_shapes(rng: Random) -> Scene:
    """Two objects that differ in colour and shape."""
    return _shapes(rng, _coloured(rng, lambda: _two(rng)), lambda picture, shapes: layout.apart(rng, picture, shapes))


def shapes_beside(rng: Random, side: str) -> Scene:
    """Two objects that differ in colour and shape, the first at the given side of the second."""
    return _shapes(
        rng,
        _coloured(rng, lambda: _two(rng)),
        lambda picture, shapes: layout.beside(rng, picture, (shapes[0], shapes[1]), side),
    )


def like_shapes(rng: Random) -> Scene:
    """One to four objects of one shape, all of one colour or each of its own."""
    count, is_mixed = rng.randint(1, len(COUNTS)), rng.random() < 0.35

    def things() -> tuple[Thing, ...]:
        shape = rng.choice(SHAPES)
        colours = rng.sample(COLOURS, count) if is_mixed else [rng.choice(COLOURS)] * count
        return tuple(Thing(colour, shape) for colour in colours)

    return _shapes(rng, _coloured(rng, things), lambda picture, shapes: layout.apart(rng, picture, shapes))


def written(rng: Random, text: str) -> Scene:
    """A text alone: a digit, a number, or a word in some case."""
    coloured = _coloured(rng, lambda: (Thing(rng.choice(COLOURS), text),), Ground.is_legible)
    form = Text(rng.choice((text, text.upper(), text.capitalize())), rng.choice(FONTS))
    left, top, right, bottom = form.ink()
    proportions = Proportions((right - left) / (bottom - top), rng.uniform(-8, 8))
    picture = layout.canvas(rng)
    place = layout.alone if len(text) == 1 else layout.filling
    box = place(rng, picture, proportions)
    look = _look(rng, rng.choice(("plain", "plain", "linear", "outlined")), coloured.things[0], coloured.values[0])
    return _finished(rng, picture, coloured, [_item(form, look, box)])


def _two(rng: Random) -> tuple[Thing, Thing]:
    while True:
        shapes = rng.sample(SHAPES, 2)
        if frozenset(shapes) not in _ALIKE:
            colours = rng.sample(COLOURS, 2)
            return Thing(colours[0], shapes[0]), Thing(colours[1], shapes[1])


def _coloured(
    rng: Random,
    things_of: Callable[[], tuple[Thing, ...]],
    is_seen: Callable[[Ground, Rgb], bool] = Ground.shows,
) -> _Coloured:
    """Finds a ground for the things; takes other things where no ground shows all of them, as for black and white."""
    while True:
        things = things_of()
        value = {thing.colour: value_of(rng, thing.colour) for thing in things}
        for _ in range(_GROUND_TRIES):
            below = ground(rng)
            if all(is_seen(below, colour) for colour in value.values()):
                return _Coloured(things, tuple(value[thing.colour] for thing in things), below)


def _shapes(rng: Random, coloured: _Coloured, place: Callable[[Canvas, Sequence[Proportions]], list[Box]]) -> Scene:
    picture = layout.canvas(rng)
    is_uniform = len({thing.name for thing in coloured.things}) == 1
    each = [_proportions(rng, thing.name) for thing in coloured.things]
    boxes = place(picture, [each[0]] * len(each) if is_uniform else each)
    finish = rng.choices(("plain", "linear", "radial", "outlined", "hollow"), (38, 15, 12, 20, 15))[0]
    if finish == "hollow" and min(min(box.width, box.height) for box in boxes) < _HOLLOW_FROM_PX:
        finish = "plain"
    thickness, points = rng.uniform(0.26, 0.4), rng.uniform(0.38, 0.5)
    items = []
    for thing, value, box in zip(coloured.things, coloured.values, boxes, strict=True):
        own_finish = "plain" if finish == "hollow" and thing.name == "cross" else finish  # its arms are too thin
        look = _look(rng, own_finish, thing, value)
        items.append(_item(outline(thing.name, thickness, points), look, box))
    return _finished(rng, picture, coloured, items)


def _proportions(rng: Random, shape: str) -> Proportions:
    turn = _MAX_TURN.get(shape, _MAX_TURN_ELSE) * rng.choice((0, 1))
    longer = {
        "oval": rng.uniform(1.4, 2.0),
        "rectangle": rng.uniform(1.5, 2.6),
        "diamond": rng.choice((1.0, rng.uniform(1.25, 1.65))),
        "triangle": rng.uniform(1.0, 1.25),
        "heart": rng.uniform(1.0, 1.12),
        "star": 1.05,
    }.get(shape, 1.0)
    is_upright = shape in {"oval", "rectangle", "diamond"} and rng.random() < 0.5
    return Proportions(1 / longer if is_upright else longer, rng.uniform(-turn, turn))


def _look(rng: Random, finish: str, thing: Thing, value: Rgb) -> Look:
    share = rng.uniform(0.03, 0.06)
    if finish == "hollow":
        share = rng.uniform(0.08, 0.12) if thing.name == "star" else rng.uniform(0.12, 0.2)
    borders = [border for border in (value.towards(BLACK, 0.5), BLACK, WHITE) if contrast(border, value) > 25]
    return Look(value, finish, rng.choice(borders), share, _SHADE.get(thing.colour, _SHADE_ELSE))


def _item(form: Outline | Text, look: Look, box: Box) -> Item:
    return Item(form, look, box.x, box.y, box.width, box.height, box.angle_degrees)


def _finished(rng: Random, size: Canvas, coloured: _Coloured, items: Sequence[Item]) -> Scene:
    """Draws the scene, and at times saves it as JPEG in between, which leaves its traces."""
    picture = draw(size.width, size.height, coloured.ground, items)
    if rng.random() < _JPEG_SHARE:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(40, 92))
        picture = Image.open(file).convert("RGB")
    return Scene(picture, coloured.things, coloured.ground.names)
