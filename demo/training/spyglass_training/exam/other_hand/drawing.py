"""Draws the second hand's pictures: objects and text on a ground, as SVG, rasterised by resvg.

Owns outlines, finishes, fonts and the rasteriser. Knows nothing of where things go or of what is asked.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import resvg_py
from PIL import Image, ImageFont

from spyglass_training.exam.other_hand.colours import BLACK, WHITE, Ground, Rgb

_MEASURE_PX = 200
_BEND = 0.2761  # where Bezier curves have their handles to look like a circle with a radius of a half
_CIRCLE = (
    (-0.5, 0), (-0.5, -_BEND), (-_BEND, -0.5), (0, -0.5), (_BEND, -0.5), (0.5, -_BEND), (0.5, 0),
    (0.5, _BEND), (_BEND, 0.5), (0, 0.5), (-_BEND, 0.5), (-0.5, _BEND), (-0.5, 0),
)  # fmt: skip
_HEART = (
    (0, 0.5), (-0.15, 0.3), (-0.5, 0.08), (-0.5, -0.2), (-0.5, -0.4), (-0.36, -0.5), (-0.25, -0.5),
    (-0.12, -0.5), (-0.04, -0.42), (0, -0.3), (0.04, -0.42), (0.12, -0.5), (0.25, -0.5),
    (0.36, -0.5), (0.5, -0.4), (0.5, -0.2), (0.5, 0.08), (0.15, 0.3), (0, 0.5),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Font:
    """A font file of an installed package, and how SVG asks for it."""

    package: str
    file: str
    family: str
    weight: int
    style: str = "normal"

    @property
    def path(self) -> Path:
        folder = self.package.replace("-", "_")
        return Path(str(distribution(self.package).locate_file(f"{folder}/files/{self.file}")))


FONTS = (
    Font("font-manrope", "Manrope-Medium.ttf", "Manrope", 500),
    Font("font-manrope", "Manrope-ExtraBold.ttf", "Manrope", 800),
    Font("font-fjallaone", "FjallaOne-Regular.ttf", "Fjalla One", 400),
    Font("font-hanken-grotesk", "HankenGrotesk-Medium.otf", "Hanken Grotesk", 500),
    Font("font-hanken-grotesk", "HankenGrotesk-Bold.otf", "Hanken Grotesk", 700),
    Font("font-caladea", "Caladea-Regular.ttf", "Caladea", 400),
    Font("font-caladea", "Caladea-Bold.ttf", "Caladea", 700),
    Font("font-caladea", "Caladea-BoldItalic.ttf", "Caladea", 700, "italic"),
)


@dataclass(frozen=True, slots=True)
class Look:
    """How an object is coloured.

    The finish is plain, shaded along a line (linear) or from a centre (radial), with a border (outlined), or
    nothing but a border (hollow). `border_share` is the border's width by the object's shorter side.
    """

    colour: Rgb
    finish: str = "plain"
    border: Rgb = BLACK
    border_share: float = 0.05
    light: float = 0.2
    """How far a shaded object goes towards white and black; little, where that would change the colour's name."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed shape in a box of 1 x 1 around the origin: the points of its lines, or of its Bezier curves."""

    points: tuple[tuple[float, float], ...]
    is_curved: bool = False

    def path(self, width: float, height: float) -> str:
        """SVG path data. The points are scaled and not the drawing, so that a border is as wide everywhere."""
        first, *rest = (f"{x * width:.2f} {y * height:.2f}" for x, y in self.points)
        return f"M{first}{'C' if self.is_curved else 'L'}{' '.join(rest)}Z"


@dataclass(frozen=True, slots=True)
class Text:
    """Written text, which fills its box."""

    text: str
    font: Font

    def ink(self) -> tuple[float, float, float, float]:
        """The left, top, right and bottom of what is inked, by the font's size, from the start of the base line."""
        font = ImageFont.truetype(str(self.font.path), _MEASURE_PX)
        left, top, right, bottom = font.getbbox(self.text, anchor="ls")
        return left / _MEASURE_PX, top / _MEASURE_PX, right / _MEASURE_PX, bottom / _MEASURE_PX


@dataclass(frozen=True, slots=True)
class Item:
    """Something to draw: its centre and size in pixels, and how far it is turned clockwise."""

    form: Outline | Text
    look: Look
    x: float
    y: float
    width: float
    height: float
    angle_degrees: float


def draw(width: int, height: int, ground: Ground, items: Sequence[Item]) -> Image.Image:
    """The picture in RGB, `width` by `height` pixels."""
    defs = [_ground_gradient(ground)]
    fill = "url(#ground)" if len(ground.stops) > 1 else str(ground.stops[0])
    body = [f'<rect width="{width}" height="{height}" fill="{fill}"/>']
    fonts: list[str] = []
    for number, item in enumerate(items):
        defs.append(_gradient(f"look{number}", item.look))
        body.append(_element(f"look{number}", item))
        if isinstance(item.form, Text):
            fonts.append(str(item.form.font.path))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f"<defs>{''.join(defs)}</defs>{''.join(body)}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, font_files=fonts or None)
    return Image.open(io.BytesIO(png)).convert("RGB")


def outline(shape: str, thickness: float, points_share: float) -> Outline:
    """The outline of a shape of the world.

    `thickness` is the width of a cross's arms, `points_share` how far a star's inner corners reach out, both from
    0 to 1. Ovals, rectangles and diamonds get theirs from the box that they are put in.
    """
    match shape:
        case "circle" | "oval":
            return Outline(_CIRCLE, is_curved=True)
        case "heart":
            return Outline(_HEART, is_curved=True)
        case "square" | "rectangle":
            return Outline(((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)))
        case "triangle":
            return Outline(((0, -0.5), (0.5, 0.5), (-0.5, 0.5)))
        case "diamond":
            return Outline(((0, -0.5), (0.5, 0), (0, 0.5), (-0.5, 0)))
        case "cross":
            arm = thickness / 2
            corners = ((-arm, -0.5), (arm, -0.5), (arm, -arm), (0.5, -arm), (0.5, arm), (arm, arm))
            return Outline((*corners, *((-x, -y) for x, y in corners)))
        case "star":
            return Outline(_star(points_share))
        case _:
            raise ValueError(f"the world has no shape {shape!r}")


def _star(points_share: float) -> tuple[tuple[float, float], ...]:
    radii = (1.0, points_share) * 5
    corners = [
        (radius * math.sin(turn * math.pi / 5), -radius * math.cos(turn * math.pi / 5))
        for turn, radius in enumerate(radii)
    ]
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    return tuple(((x - left) / (right - left) - 0.5, (y - top) / (bottom - top) - 0.5) for x, y in corners)


def _ground_gradient(ground: Ground) -> str:
    if len(ground.stops) < 2:
        return ""
    return (
        f'<linearGradient id="ground" gradientTransform="rotate({ground.angle_degrees:.1f} .5 .5)">'
        f'<stop stop-color="{ground.stops[0]}"/><stop offset="1" stop-color="{ground.stops[1]}"/></linearGradient>'
    )


def _gradient(name: str, look: Look) -> str:
    if look.finish not in {"linear", "radial"}:
        return ""
    kind, shape = {
        "linear": ("linearGradient", 'x1="0" y1="0" x2=".6" y2="1"'),
        "radial": ("radialGradient", 'cx=".4" cy=".38" r=".7"'),
    }[look.finish]
    light, dark = look.colour.towards(WHITE, look.light), look.colour.towards(BLACK, look.light)
    return f'<{kind} id="{name}" {shape}><stop stop-color="{light}"/><stop offset="1" stop-color="{dark}"/></{kind}>'


def _element(name: str, item: Item) -> str:
    look = item.look
    fill = {"linear": f"url(#{name})", "radial": f"url(#{name})", "hollow": "none"}.get(look.finish, str(look.colour))
    border_px = look.border_share * min(item.width, item.height) if look.finish in {"outlined", "hollow"} else 0.0
    border = look.colour if look.finish == "hollow" else look.border
    attributes = f'transform="translate({item.x:.2f} {item.y:.2f}) rotate({item.angle_degrees:.2f})" fill="{fill}"'
    if border_px:
        attributes += f' stroke="{border}" stroke-width="{border_px:.2f}" stroke-linejoin="round" paint-order="stroke"'
    width, height = item.width - border_px, item.height - border_px
    if isinstance(item.form, Outline):
        return f'<path {attributes} d="{item.form.path(width, height)}"/>'
    left, top, right, bottom = item.form.ink()
    size = min(width / (right - left), height / (bottom - top))
    font = item.form.font
    return (
        f'<text {attributes} x="{-size * (left + right) / 2:.2f}" y="{-size * (top + bottom) / 2:.2f}" '
        f'font-family="{font.family}" font-weight="{font.weight}" font-style="{font.style}" font-size="{size:.2f}">'
        f"{item.form.text}</text>"
    )
