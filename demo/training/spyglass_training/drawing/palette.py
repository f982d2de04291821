"""What counts as which colour.

Owns the range of shades behind each name, for things and for grounds. Knows nothing of shapes.
"""

import colorsys
from random import Random

from spyglass_training.world import COLOURS

Rgb = tuple[int, int, int]

_SHADES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 7), (0.78, 1.0), (0.78, 1.0)),
    "green": ((88, 155), (0.55, 1.0), (0.38, 0.95)),
    "blue": ((204, 242), (0.62, 1.0), (0.55, 1.0)),
    "yellow": ((49, 61), (0.68, 1.0), (0.88, 1.0)),
    "orange": ((20, 40), (0.82, 1.0), (0.9, 1.0)),
    "purple": ((266, 302), (0.45, 1.0), (0.42, 0.85)),
    "pink": ((318, 352), (0.24, 0.62), (0.93, 1.0)),
    "brown": ((0, 32), (0.52, 0.9), (0.3, 0.65)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.12)),
    "white": ((0, 360), (0.0, 0.03), (0.96, 1.0)),
    "grey": ((0, 360), (0.0, 0.06), (0.38, 0.74)),
}
"""Hue in degrees, saturation and value: the ends of each range are still what people call by the name."""

_PASTELS = ("red", "green", "blue", "yellow", "orange", "purple")
_TOO_CLOSE = 150.0


def shade(name: str, rng: Random) -> Rgb:
    """A random shade of a named colour."""
    (h0, h1), (s0, s1), (v0, v1) = _SHADES[name]
    hue, saturation, value = rng.uniform(h0, h1), rng.uniform(s0, s1), rng.uniform(v0, v1)
    if name == "brown" and hue < 12:  # what is redder than that and bright is a dark red
        value = min(value, 0.5)
    return _rgb(hue, saturation, value)


def tint(rng: Random) -> Rgb:
    """A light ground of some hue, or one that is nearly grey."""
    (h0, h1), _, _ = _SHADES[rng.choice(_PASTELS)]
    return _rgb(rng.uniform(h0, h1), rng.uniform(0.03, 0.28), rng.uniform(0.86, 1.0))


def lighter(colour: Rgb, share: float) -> Rgb:
    """The colour mixed with white; a negative share mixes it with black."""
    target = 255 if share > 0 else 0
    r, g, b = (round(part + (target - part) * abs(share)) for part in colour)
    return r, g, b


def distance(a: Rgb, b: Rgb) -> float:
    """How different two colours look, 0 to 765: the "redmean" formula."""
    red = (a[0] + b[0]) / 2
    dr, dg, db = (x - y for x, y in zip(a, b, strict=True))
    return float(((2 + red / 256) * dr * dr + 4 * dg * dg + (2 + (255 - red) / 256) * db * db) ** 0.5)


def distinct(name: str, grounds: tuple[Rgb, ...], rng: Random) -> Rgb | None:
    """A shade of `name` that stands out from every ground, or None when none was found."""
    for _ in range(6):
        colour = shade(name, rng)
        if all(distance(colour, ground) > _TOO_CLOSE for ground in grounds):
            return colour
    return None


def any_distinct(grounds: tuple[Rgb, ...], rng: Random, but: tuple[str, ...] = ()) -> tuple[str, Rgb]:
    """A named colour, and a shade of it, that stands out from every ground."""
    while True:
        name = rng.choice(COLOURS)
        if name not in but and (colour := distinct(name, grounds, rng)) is not None:
            return name, colour


def _rgb(hue: float, saturation: float, value: float) -> Rgb:
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)
