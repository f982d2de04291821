"""The second hand's colours: a few values for each name, and grounds on which they are seen.

Owns what a name may look like and what may be laid on what. Knows nothing of shapes.
"""

import math
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import NamedTuple

MIN_CONTRAST = 38.0
"""The least CIE76 distance between an object and its ground: a difference that nobody overlooks."""
MIN_LIGHTER = 25.0
"""How much lighter an object must be than a dark ground, from 0 to 100: dark hues look alike there."""


class Rgb(NamedTuple):
    """A colour with channels from 0 to 255."""

    red: int
    green: int
    blue: int

    @classmethod
    def parse(cls, text: str) -> "Rgb":
        """Reads `rrggbb`."""
        return cls(*bytes.fromhex(text))

    def __str__(self) -> str:
        return f"rgb({self.red},{self.green},{self.blue})"

    def towards(self, other: "Rgb", share: float) -> "Rgb":
        """The mixture with the given share of the other colour."""
        return Rgb(*(round(a + (b - a) * share) for a, b in zip(self, other, strict=True)))


BLACK = Rgb(0, 0, 0)
WHITE = Rgb(255, 255, 255)

VALUES = MappingProxyType(
    {
        "red": ("ff0000", "dc143c", "d21f1f", "e32222"),
        "green": ("008000", "2ca02c", "1e9e3e", "00b050"),
        "blue": ("0000ff", "1f5fd6", "1565c0", "2748c8"),
        "yellow": ("ffff00", "ffe119", "fdd835", "ffeb00"),
        "orange": ("ff8c00", "ff7f0e", "fb8500", "f58220"),
        "purple": ("800080", "7b1fa2", "6a1b9a", "8e2fb0"),
        "pink": ("ff69b4", "ff80b5", "f777b7", "ff8fc0"),
        "brown": ("8b4513", "795030", "6d3f1f", "7b4a22"),
        "black": ("000000", "0a0a0a", "151515"),
        "white": ("ffffff", "fafafa"),
        "grey": ("808080", "8a8a8a", "7a7d80", "929292"),
    }
)
_DARK = 40.0
_MIN_LEGIBLE = 18.0
_JITTER = 6
_PALE = (
    ("eaf4ff", "white blue"), ("d4e6fa", "blue"), ("fff7d6", "white yellow"), ("fdeef0", "white pink"),
    ("f9d9e2", "pink"), ("e6f5e6", "white green"), ("cfeacb", "green"), ("ece4f7", "white purple"),
    ("efe3d0", "white brown yellow orange"), ("e4e4e4", "white grey"), ("f6f6f3", "white"),
)  # fmt: skip
_STRONG = (
    ("111111", "black"), ("3a3a3a", "black grey"), ("1d3557", "blue black"), ("27496d", "blue"),
    ("2f5d46", "green"), ("5a2a4a", "purple"), ("b9b9b9", "grey"), ("9fc5e8", "blue"), ("7fb58a", "green"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ground:
    """What a picture is drawn on: one colour, or two that run into each other at an angle in degrees.

    `names` are the colours that a person may call it.
    """

    stops: tuple[Rgb, ...]
    angle_degrees: float
    names: frozenset[str]

    def shows(self, colour: Rgb) -> bool:
        """Whether the colour is clearly seen on all of the ground."""
        lightness = _lab(colour)[0]
        return all(
            contrast(stop, colour) >= MIN_CONTRAST and not (_DARK > _lab(stop)[0] > lightness - MIN_LIGHTER)
            for stop in self.stops
        )

    def is_legible(self, colour: Rgb) -> bool:
        """Whether thin letters in the colour can be read: hue alone, as of yellow on white, does not do."""
        lightness = _lab(colour)[0]
        return self.shows(colour) and all(abs(_lab(stop)[0] - lightness) >= _MIN_LEGIBLE for stop in self.stops)


def value_of(rng: Random, name: str) -> Rgb:
    """A value that a person calls by the name."""
    base = Rgb.parse(rng.choice(VALUES[name]))
    shift = 0 if name in {"black", "white", "grey"} else _JITTER
    return Rgb(*(min(255, max(0, channel + rng.randint(-shift, shift))) for channel in base))


def ground(rng: Random) -> Ground:
    """A ground: often white, often pale, at times strong, at times graded."""
    style = rng.choices(("white", "pale", "strong", "graded"), (35, 30, 15, 20))[0]
    if style == "white":
        return Ground((WHITE,), 0, frozenset({"white"}))
    if style == "graded":
        family = _PALE if rng.random() < 0.8 else _STRONG[:6]  # light runs into light, dark into dark
        pair = rng.sample(family, 2)
        names = frozenset(name for _, text in pair for name in text.split())
        return Ground(tuple(Rgb.parse(value) for value, _ in pair), rng.uniform(0, 360), names)
    value, text = rng.choice(_PALE if style == "pale" else _STRONG)
    return Ground((Rgb.parse(value),), 0, frozenset(text.split()))


def contrast(one: Rgb, other: Rgb) -> float:
    """The CIE76 distance: about 2 is just seen, 100 lies between black and white."""
    return math.dist(_lab(one), _lab(other))


def _lab(colour: Rgb) -> tuple[float, float, float]:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    )
    x, y, z = (
        value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116
        for value in (
            (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
            0.2126 * red + 0.7152 * green + 0.0722 * blue,
            (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
        )
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
