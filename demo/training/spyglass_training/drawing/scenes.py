"""What is on a picture: things, their places and the ground, drawn by lot.

Owns the kinds of scenes and where their things may lie. Knows nothing of pixels, styles or questions.
"""

import math
from dataclasses import dataclass, field
from random import Random

from spyglass_training.drawing import palette
from spyglass_training.drawing.palette import Rgb
from spyglass_training.drawing.shapes import Point, outline
from spyglass_training.world import COLOURS, SHAPES, WORDS

SCENES = ("one", "two", "several", "digit", "number", "word", "nothing")


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, or a text in one line. Places are in pixels of the scene."""

    name: str  # the shape, or the text as it is written
    is_text: bool
    colour: str
    rgb: Rgb
    x: float
    y: float
    reach: float  # from the middle to the farthest point; for a text half its width
    points: tuple[Point, ...] = ()  # the outline, unit size


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies behind: one colour, or a change from one to another."""

    name: str  # of a plain ground in a named colour, else empty
    first: Rgb
    second: Rgb


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn."""

    kind: str
    width: int
    height: int
    ground: Ground
    things: tuple[Thing, ...] = field(default=())

    def side(self, thing: Thing, other: Thing) -> str:
        """Where `thing` lies as seen from `other`, along the axis on which they are farther apart."""
        dx, dy = thing.x - other.x, thing.y - other.y
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return "above" if dy < 0 else "below"

    def is_clear(self) -> bool:
        """Whether the first two things are clearly side by side or above each other."""
        a, b = self.things[:2]
        dx, dy = abs(a.x - b.x), abs(a.y - b.y)
        return max(dx, dy) > 1.4 * min(dx, dy)


def draw_lots(kind: str, width: int, height: int, rng: Random, easy: bool = False) -> Scene:
    """A scene of a kind. Easy ones are large on plain white.

    "varied" ones are of the kind "several", but never of one shape: two shapes and two colours come again,
    so that counting some of the things is not counting all.
    """
    ground = Ground("white", *2 * (palette.shade("white", rng),)) if easy else _ground(rng)
    match kind:
        case "one":
            things = _apart(1, width, height, rng, (0.3, 0.5) if easy else (0.14, 0.5))
        case "two":
            things = _apart(2, width, height, rng, (0.2, 0.3) if easy else (0.11, 0.3))
        case "several" | "varied":
            count = rng.randint(2 if kind == "varied" else 1, 4)
            things = _apart(count, width, height, rng, (0.16, 0.26) if easy else (0.1, 0.26))
        case "digit" | "number" | "word":
            return Scene(kind, width, height, ground, (_text(kind, width, height, ground, rng),))
        case "nothing":
            return Scene(kind, width, height, ground)
        case _:
            raise ValueError(f"there are no scenes of kind {kind!r}")
    named = "several" if kind == "varied" else kind
    return Scene(named, width, height, ground, tuple(_paint(kind, things, ground, rng)))


def draw_size(rng: Random, longest: int) -> tuple[int, int]:
    """Width and height of a picture of 100 to 1500 pixels a side, scaled down to `longest`."""
    while True:
        width = math.exp(rng.uniform(math.log(100), math.log(1500)))
        height = width * math.exp(rng.uniform(-math.log(4), math.log(4)))
        if rng.random() < 0.3:  # many pictures are near 4:3 or square
            height = width * rng.uniform(0.65, 1.5)
        if 100 <= height <= 1500:
            break
    scale = min(1.0, longest / max(width, height))
    return round(width * scale), round(height * scale)


def _ground(rng: Random) -> Ground:
    style = rng.random()
    if style < 0.3:
        return Ground("white", *2 * (palette.shade("white", rng),))
    if style < 0.55:
        name = rng.choice(COLOURS)
        return Ground(name, *2 * (palette.shade(name, rng),))
    if style < 0.78:
        return Ground("", *2 * (palette.tint(rng),))
    first = palette.tint(rng) if rng.random() < 0.7 else palette.shade(rng.choice(COLOURS), rng)
    second = palette.tint(rng) if rng.random() < 0.4 else palette.lighter(first, rng.uniform(-0.35, 0.35))
    return Ground("", first, second)


def _apart(count: int, width: int, height: int, rng: Random, shares: tuple[float, float]) -> list[tuple[float, ...]]:
    """Places (x, y, reach) that do not touch each other; reach is a share of the shorter side, as there is room."""
    short, long = min(width, height), max(width, height)
    alike = rng.random() < 0.4
    common = rng.uniform(*shares)
    while True:
        # a long strip has room for larger things than a square
        stretch = min(1.5, (long / short) ** 0.5) if count > 1 else 1.0
        places: list[tuple[float, ...]] = []
        for _ in range(40):
            share = common if alike else rng.uniform(*shares)
            reach = min(share * stretch, 0.5) * short * rng.uniform(0.9, 1.0)
            x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
            if all(math.hypot(x - a, y - b) > reach + c + 0.03 * short for a, b, c in places):
                places.append((x, y, reach))
            if len(places) == count:
                return places
        common = shares[0]
        alike = True


def _paint(kind: str, places: list[tuple[float, ...]], ground: Ground, rng: Random) -> list[Thing]:
    """Chooses shapes and colours for the places."""
    grounds = (ground.first, ground.second)
    same_shape = kind == "several" and rng.random() < 0.8
    same_colour = kind == "several" and rng.random() < 0.5
    things: list[Thing] = []
    for x, y, reach in places:
        differs = kind == "two" or (kind == "varied" and len(things) < 2)
        but = tuple(thing.colour for thing in things) if differs else ()
        colour, rgb = palette.any_distinct(grounds, rng, but)
        if same_colour and things:
            colour, rgb = things[0].colour, things[0].rgb
        free = [shape for shape in SHAPES if not differs or all(shape != thing.name for thing in things)]
        shape = things[0].name if same_shape and things else rng.choice(free)
        if kind == "varied" and not differs:
            shape, like = rng.choice(things).name, rng.choice(things)
            colour, rgb = like.colour, like.rgb
        things.append(Thing(shape, False, colour, rgb, x, y, reach, tuple(outline(shape, rng))))
    return things


def _text(kind: str, width: int, height: int, ground: Ground, rng: Random) -> Thing:
    if kind == "digit":
        text = str(rng.randrange(10))
    elif kind == "number":
        text = str(rng.randrange(1, 10)) + "".join(str(rng.randrange(10)) for _ in range(rng.randint(1, 2)))
    else:
        word = rng.choice(WORDS)
        text = rng.choice((word, word.upper(), word.upper(), word.capitalize()))
    colour, rgb = palette.any_distinct((ground.first, ground.second), rng)
    if rng.random() < 0.4 and palette.distance((0, 0, 0), ground.first) > 300:
        colour, rgb = "black", palette.shade("black", rng)
    # Where it lies is settled when it is set, as only then its size is known.
    x, y = rng.random(), rng.random()
    return Thing(text, True, colour, rgb, x, y, reach=rng.random())
