"""Outlines of the shapes.

Owns their geometry: points of a polygon round (0, 0). Knows nothing of colours or pictures.
"""

import math
from random import Random

Point = tuple[float, float]


def outline(shape: str, rng: Random) -> list[Point]:
    """A variant of the shape, turned a little; its farthest point lies 1 from the middle of its box."""
    points = _upright(shape, rng)
    points = _turn(points, _angle(shape, rng))
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    cx, cy = (left + right) / 2, (top + bottom) / 2
    reach = max(math.hypot(x - cx, y - cy) for x, y in points)
    return [((x - cx) / reach, (y - cy) / reach) for x, y in points]


def _upright(shape: str, rng: Random) -> list[Point]:
    match shape:
        case "circle":
            return _ellipse(1, 1)
        case "oval":
            return _either_way(_ellipse(1, rng.uniform(0.45, 0.74)), rng)
        case "square":
            return _box(1, 1, rng)
        case "rectangle":
            return _either_way(_box(1, rng.uniform(0.3, 0.68), rng), rng)
        case "triangle":
            return [
                (rng.uniform(-0.45, 0.45) if rng.random() < 0.3 else 0, -rng.uniform(0.7, 1.1)),
                (1, 0.8),
                (-1, 0.8),
            ]
        case "diamond":
            w = rng.uniform(0.55, 1.0)
            return _either_way([(0, -1), (w, 0), (0, 1), (-w, 0)], rng)
        case "star":
            inner, arms = rng.uniform(0.36, 0.52), rng.choice((5, 5, 5, 5, 5, 6))
            return [_polar((1, inner)[i % 2], math.pi * i / arms - math.pi / 2) for i in range(2 * arms)]
        case "heart":
            return _heart(rng.uniform(0.85, 1.15))
        case "cross":
            w = rng.uniform(0.2, 0.42)
            corner = [(w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]
            return [*corner, (-w, -1)]
    raise ValueError(f"there is no shape {shape!r}")


def _angle(shape: str, rng: Random) -> float:
    """How far the shape is turned, in radians."""
    if shape == "triangle" and rng.random() < 0.2:
        return rng.uniform(0, 2 * math.pi)
    if shape == "diamond":
        return math.radians(rng.uniform(-5, 5))
    if shape == "star" and rng.random() < 0.2:
        return rng.uniform(0, 2 * math.pi)
    if shape in ("square", "rectangle", "oval") and rng.random() < 0.4:
        return 0.0
    return math.radians(rng.uniform(-15, 15))


def _box(w: float, h: float, rng: Random) -> list[Point]:
    corner = min(w, h) * rng.choice((0, 0, 0, rng.uniform(0.1, 0.35)))
    if corner == 0:
        return [(-w, -h), (w, -h), (w, h), (-w, h)]
    points = []
    for sx, sy, start in ((1, -1, -0.5), (1, 1, 0.0), (-1, 1, 0.5), (-1, -1, 1.0)):
        for i in range(5):
            x, y = _polar(corner, math.pi * (start + i / 8))
            points.append((sx * (w - corner) + x, sy * (h - corner) + y))
    return points


def _ellipse(a: float, b: float) -> list[Point]:
    return [(a * math.cos(t), b * math.sin(t)) for t in (2 * math.pi * i / 40 for i in range(40))]


def _heart(height: float) -> list[Point]:
    """The usual curve of 16 sin^3."""
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -y * height / 16))
    return points


def _either_way(points: list[Point], rng: Random) -> list[Point]:
    return points if rng.random() < 0.5 else [(y, x) for x, y in points]


def _turn(points: list[Point], angle: float) -> list[Point]:
    c, s = math.cos(angle), math.sin(angle)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def _polar(radius: float, angle: float) -> Point:
    return radius * math.cos(angle), radius * math.sin(angle)
