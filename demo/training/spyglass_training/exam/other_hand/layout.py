"""The second hand's layouts: picture sizes, and where objects go without touching.

Owns sizes and places, in pixels. Knows nothing of colours, nor of what an object is but its proportions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

MIN_SIDE, MAX_SIDE = 100, 1500
_MAX_RATIO = 4.0
_SINGLE = (0.25, 0.75)
_SEVERAL = (0.18, 0.45)
_MAX_ASTRAY = 0.35  # how far two objects may be off the axis, by their distance along it
_PLACES = 25  # to try for one object
_SHRINK = 0.97


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture's size in pixels."""

    width: int
    height: int

    @property
    def sides(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def short(self) -> int:
        return min(self.sides)

    @property
    def edge(self) -> float:
        """What stays free along the picture's edges."""
        return 0.03 * self.short

    @property
    def gap(self) -> float:
        """What stays free between objects at least."""
        return 0.07 * self.short


@dataclass(frozen=True, slots=True)
class Proportions:
    """An object before it has a size: its width by its height, and how far it is turned clockwise."""

    ratio: float
    angle_degrees: float


@dataclass(frozen=True, slots=True)
class Box:
    """Where an object goes: its centre and its size before it is turned."""

    x: float
    y: float
    width: float
    height: float
    angle_degrees: float

    @classmethod
    def of(cls, proportions: Proportions, shorter: float) -> "Box":
        """A box at the origin, from the length of its shorter side."""
        ratio = proportions.ratio
        return cls(0, 0, shorter * max(1, ratio), shorter * max(1, 1 / ratio), proportions.angle_degrees)

    def at(self, x: float, y: float) -> "Box":
        return replace(self, x=x, y=y)

    @property
    def reach(self) -> tuple[float, float]:
        """Half the width and half the height of the upright box around the turned one."""
        cosine, sine = math.cos(math.radians(self.angle_degrees)), abs(math.sin(math.radians(self.angle_degrees)))
        return (self.width * cosine + self.height * sine) / 2, (self.width * sine + self.height * cosine) / 2


def canvas(rng: Random) -> Canvas:
    """A picture's size: 100 to 1500 pixels a side, 1:4 to 4:1, small and large alike."""
    mean = math.exp(rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE)))
    stretch = math.sqrt(math.exp(rng.uniform(-math.log(_MAX_RATIO), math.log(_MAX_RATIO))))
    width, height = (round(min(MAX_SIDE, max(MIN_SIDE, side))) for side in (mean * stretch, mean / stretch))
    return Canvas(width, height)


def alone(rng: Random, picture: Canvas, proportions: Proportions) -> Box:
    """A place for a single object, whose shorter side takes 25 to 75 % of the picture's, as far as it fits."""
    sizes = _sizes(rng, picture, 1, *_SINGLE)
    places = (_placed(rng, picture, Box.of(proportions, shorter)) for (shorter,) in sizes)
    return next(box for box in places if box)


def apart(rng: Random, picture: Canvas, objects: Sequence[Proportions]) -> list[Box]:
    """Places for several objects, whose shorter sides take 18 to 45 % of the picture's, as far as they fit."""
    for shorter in _sizes(rng, picture, len(objects), *_SEVERAL):
        found: list[Box] = []
        for thing, size in zip(objects, shorter, strict=True):
            places = (_placed(rng, picture, Box.of(thing, size)) for _ in range(_PLACES))
            free = (box for box in places if box and all(_are_apart(box, other, picture.gap) for other in found))
            found += islice(free, 1)
        if len(found) == len(objects):
            break
    return found


def beside(rng: Random, picture: Canvas, objects: tuple[Proportions, Proportions], side: str) -> list[Box]:
    """Places for two objects, of which the first is clearly at the given side of the second, and at no other."""
    along = 0 if side in {"left", "right"} else 1
    for shorter in _sizes(rng, picture, 2, *_SEVERAL):
        boxes = [Box.of(thing, size) for thing, size in zip(objects, shorter, strict=True)]
        lengths, widths = ([box.reach[axis] for box in boxes] for axis in (along, 1 - along))
        free = picture.sides[along] - 2 * (picture.edge + sum(lengths)) - picture.gap
        room = [picture.sides[1 - along] / 2 - picture.edge - width for width in widths]
        if free >= 0 and min(room) >= 0:
            break
    distance = sum(lengths) + picture.gap + rng.uniform(0, free)
    start = picture.edge + rng.uniform(0, picture.sides[along] - 2 * picture.edge - sum(lengths) - distance)
    order = (0, 1) if side in {"left", "above"} else (1, 0)
    places = {order[0]: start + lengths[order[0]], order[1]: start + lengths[order[0]] + distance}
    astray = _MAX_ASTRAY * distance
    offset = rng.uniform(*_common((-room[0], room[0]), (-room[1] - astray, room[1] + astray)))
    offsets = offset, rng.uniform(*_common((-room[1], room[1]), (offset - astray, offset + astray)))
    middle = picture.sides[1 - along] / 2
    points = [(places[number], middle + offsets[number]) for number in (0, 1)]
    return [box.at(*(point if along == 0 else point[::-1])) for box, point in zip(boxes, points, strict=True)]


def _common(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The part that two ranges have in common."""
    return max(one[0], other[0]), min(one[1], other[1])


def filling(rng: Random, picture: Canvas, proportions: Proportions) -> Box:
    """A place for a text, which takes 60 to 94 % of the picture's width or 48 to 80 % of its height."""
    width = min(rng.uniform(0.6, 0.94) * picture.width, rng.uniform(0.48, 0.8) * picture.height * proportions.ratio)
    while True:
        box = _placed(rng, picture, Box.of(proportions, width / max(1, proportions.ratio)))
        if box:
            return box
        width *= 0.95


def _sizes(rng: Random, picture: Canvas, count: int, least: float, most: float) -> Iterator[list[float]]:
    """Shorter sides in pixels to try: ever smaller ones, down to less than the least where nothing fits."""
    while True:
        size = rng.uniform(least, most) * picture.short
        yield [max(least * picture.short, size * rng.uniform(0.8, 1.25)) if count > 1 else size for _ in range(count)]
        most = max(least, most * _SHRINK)
        least = least if most > least else least * _SHRINK


def _placed(rng: Random, picture: Canvas, box: Box) -> Box | None:
    """The box anywhere in the picture, or none where it does not fit."""
    reach_x, reach_y = box.reach
    free_x, free_y = picture.width / 2 - picture.edge - reach_x, picture.height / 2 - picture.edge - reach_y
    if free_x < 0 or free_y < 0:
        return None
    return box.at(picture.width / 2 + rng.uniform(-free_x, free_x), picture.height / 2 + rng.uniform(-free_y, free_y))


def _are_apart(one: Box, other: Box, gap: float) -> bool:
    (x, y), (other_x, other_y) = one.reach, other.reach
    return abs(one.x - other.x) > x + other_x + gap or abs(one.y - other.y) > y + other_y + gap
