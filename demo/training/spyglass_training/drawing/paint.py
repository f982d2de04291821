"""Scenes to pictures, with Pillow.

Owns styles: fills, edges, grounds, lettering and the traces of JPEG. Also draws the map of what lies
where, which only the training sees. Knows nothing of questions or of the model.
"""

import io
import math
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from spyglass_training.drawing import fonts, palette
from spyglass_training.drawing.scenes import Ground, Scene, Thing

_FINE = 3  # pixels of a mask along each pixel of the picture

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Region:
    """An area that belongs to a thing, or to one character of a text, as a polygon in pixels."""

    thing: int
    character: str  # empty for a shape
    polygon: Polygon


def paint(scene: Scene, rng: Random, easy: bool = False) -> tuple[Image.Image, Scene, list[Region]]:
    """Draws the scene. Returns the picture, the scene with the final places, and what lies where."""
    picture = _ground(scene, rng)
    fill, shadow = _fill_style(rng), rng.random() < 0.08
    things, regions = [], []
    for index, thing in enumerate(scene.things):
        if rng.random() < 0.3:
            fill = _fill_style(rng)
        if thing.is_text:
            thing, mask, corner, parts = _set_text(scene, thing, rng)
            regions += [Region(index, character, polygon) for character, polygon in parts]
            fill = fill if fill in ("shaded", "flat") else "flat"
        else:
            mask, corner = _shape_mask(thing)
            regions.append(Region(index, "", tuple(_corners(thing))))
        things.append(thing)
        if shadow:
            offset = max(1, round(thing.reach * 0.08))
            soft = mask.filter(ImageFilter.GaussianBlur(offset)).point(lambda v: v // 3)
            picture.paste((0, 0, 0), (corner[0] + offset, corner[1] + offset), soft)
        _fill(picture, thing, mask, corner, "flat" if easy else fill, rng)
    return _spoil(picture, rng), replace(scene, things=tuple(things)), regions


def _ground(scene: Scene, rng: Random) -> Image.Image:
    size, ground = (scene.width, scene.height), scene.ground
    if ground.first == ground.second:
        picture = Image.new("RGB", size, ground.first)
    else:
        picture = ImageOps.colorize(_ramp(size, rng), ground.first, ground.second)
    if scene.kind == "nothing":
        return _nonsense(picture, ground, rng)
    if rng.random() < 0.08:
        noise = Image.effect_noise(size, rng.uniform(4, 25)).convert("RGB")
        picture = Image.blend(picture, noise, rng.uniform(0.05, 0.2))
    return picture


def _ramp(size: tuple[int, int], rng: Random) -> Image.Image:
    """A change from black to white in some direction."""
    kind = Image.radial_gradient if rng.random() < 0.25 else Image.linear_gradient
    return kind("L").transpose(rng.choice(list(Image.Transpose))).resize(size)


def _nonsense(picture: Image.Image, ground: Ground, rng: Random) -> Image.Image:
    """Nothing that the model knows: an empty ground, noise, blots or lines."""
    style, size = rng.random(), picture.size
    if style < 0.35:
        return picture
    if style < 0.5:
        parts = [Image.effect_noise(size, rng.uniform(20, 120)) for _ in range(3)]
        return Image.merge("RGB", parts).filter(ImageFilter.GaussianBlur(rng.choice((0, 1, 3, 8))))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(4, 30)):
        colour = tuple(rng.randrange(256) for _ in range(3))
        points = [(rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(rng.randint(2, 5))]
        if style < 0.75:
            draw.line(points, colour, width=rng.randint(1, 6), joint="curve")
        else:
            draw.polygon([*points, points[0]], colour)
    return picture.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, 1, 4))))


def _corners(thing: Thing) -> list[tuple[float, float]]:
    return [(thing.x + x * thing.reach, thing.y + y * thing.reach) for x, y in thing.points]


def _shape_mask(thing: Thing) -> tuple[Image.Image, tuple[int, int]]:
    """The shape as coverage 0 to 255 with its margins, and where the mask's corner lies."""
    margin = 2
    left, top = math.floor(thing.x - thing.reach) - margin, math.floor(thing.y - thing.reach) - margin
    side = math.ceil(2 * thing.reach) + 2 * margin + 1
    fine = Image.new("L", (side * _FINE, side * _FINE))
    points = [((x - left) * _FINE, (y - top) * _FINE) for x, y in _corners(thing)]
    ImageDraw.Draw(fine).polygon(points, fill=255)
    return fine.reduce(_FINE), (left, top)


def _set_text(
    scene: Scene, thing: Thing, rng: Random
) -> tuple[Thing, Image.Image, tuple[int, int], list[tuple[str, Polygon]]]:
    """Sets the text in a font and size that fit. Returns thing, mask, corner and each character's box."""
    path = rng.choice(fonts.font_files())
    probe = fonts.load(path, 64).getbbox(thing.name)
    room = min(0.94 * scene.width / (probe[2] - probe[0]), 0.92 * scene.height / (probe[3] - probe[1]))
    size = max(12, round(64 * room * (1 - (1 - 0.45) * thing.reach)))
    font = fonts.load(path, min(size, 400))
    left, top, right, bottom = font.getbbox(thing.name)
    turn = math.radians(rng.choice((0, 0, rng.uniform(-8, 8))))
    mask = Image.new("L", (round(right - left) + 4, round(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), thing.name, fill=255, font=font)
    w, h = mask.size
    boxes, start = [], 2.0 - left
    for end in range(1, len(thing.name) + 1):
        stop = 2 - left + font.getlength(thing.name[:end])
        boxes.append((start, 0.0, stop, float(h)))
        start = stop
    turned = mask.rotate(-math.degrees(turn), Image.Resampling.BILINEAR, expand=True) if turn else mask
    free_x, free_y = max(0, scene.width - turned.width), max(0, scene.height - turned.height)
    corner = round(thing.x * free_x), round(thing.y * free_y)
    cx, cy = corner[0] + turned.width / 2, corner[1] + turned.height / 2
    c, s = math.cos(turn), math.sin(turn)

    def place(x: float, y: float) -> tuple[float, float]:
        dx, dy = x - w / 2, y - h / 2
        return cx + dx * c - dy * s, cy + dx * s + dy * c

    parts: list[tuple[str, Polygon]] = []
    for character, (x0, y0, x1, y1) in zip(thing.name, boxes, strict=True):
        parts.append((character, (place(x0, y0), place(x1, y0), place(x1, y1), place(x0, y1))))
    return replace(thing, x=cx, y=cy, reach=turned.width / 2), turned, corner, parts


def _fill_style(rng: Random) -> str:
    return rng.choices(("flat", "shaded", "bordered", "hollow"), (50, 20, 18, 12))[0]


def _fill(
    picture: Image.Image, thing: Thing, mask: Image.Image, corner: tuple[int, int], style: str, rng: Random
) -> None:
    edge = rng.random()
    if edge < 0.15:
        mask = mask.point(lambda v: 255 if v > 127 else 0)
    elif edge < 0.27:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    if style == "shaded":
        ends = palette.lighter(thing.rgb, rng.uniform(-0.3, 0)), palette.lighter(thing.rgb, rng.uniform(0, 0.3))
        if thing.colour in ("black", "white", "grey"):
            ends = palette.lighter(thing.rgb, -0.06), palette.lighter(thing.rgb, 0.06)
        picture.paste(ImageOps.colorize(_ramp(mask.size, rng), *ends), corner, mask)
        return
    behind = picture.crop((corner[0], corner[1], corner[0] + mask.width, corner[1] + mask.height))
    picture.paste(thing.rgb, corner, mask)
    if style == "flat":
        return
    width = max(2, round(thing.reach * (rng.uniform(0.05, 0.12) if style == "bordered" else rng.uniform(0.14, 0.26))))
    inside = _shrunk(thing, mask.size, corner, width)
    if style == "bordered":
        border = rng.choice(
            ((0, 0, 0), (255, 255, 255), palette.lighter(thing.rgb, -0.5), palette.lighter(thing.rgb, 0.5))
        )
        picture.paste(border, corner, ImageChops.subtract(mask, inside))
    else:
        picture.paste(behind, corner, inside)


def _shrunk(thing: Thing, size: tuple[int, int], corner: tuple[int, int], width: int) -> Image.Image:
    """The shape without a rim of `width` pixels."""
    fine = Image.new("L", (size[0] * _FINE, size[1] * _FINE))
    points = [((x - corner[0]) * _FINE, (y - corner[1]) * _FINE) for x, y in _corners(thing)]
    draw = ImageDraw.Draw(fine)
    draw.polygon(points, fill=255)
    draw.line([*points, points[0], points[1]], fill=0, width=2 * width * _FINE, joint="curve")
    return fine.reduce(_FINE)


def _spoil(picture: Image.Image, rng: Random) -> Image.Image:
    """What happens to pictures on their way: blur, JPEG."""
    if rng.random() < 0.06:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.25:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(30, 95))
        picture = Image.open(file).convert("RGB")
    return picture
