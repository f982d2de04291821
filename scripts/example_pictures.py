"""Draws the pictures of the examples again: python scripts/example_pictures.py"""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "clients" / "examples" / "pictures"


def star_points(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a star round (x, y)."""
    corners = []
    for i in range(10):
        reach, angle = radius * (1 if i % 2 == 0 else 0.42), math.pi * (i / 5 - 0.5)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def red_circle() -> Image.Image:
    picture = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(picture).ellipse((80, 40, 240, 200), fill="red")
    return picture


def star_and_square() -> Image.Image:
    picture = Image.new("RGB", (480, 280), "#dceaf7")
    draw = ImageDraw.Draw(picture)
    draw.polygon(star_points(130, 150, 85), fill="orange")
    draw.rectangle((290, 80, 420, 210), fill="blue")
    return picture


def three_triangles() -> Image.Image:
    picture = Image.new("RGB", (520, 200), "white")
    draw = ImageDraw.Draw(picture)
    for x in (100, 260, 420):
        draw.polygon([(x, 40), (x - 60, 150), (x + 60, 150)], fill="green")
    return picture


def text(words: str, colour: str, ground: str) -> Image.Image:
    picture = Image.new("RGB", (400, 260), ground)
    font = ImageFont.load_default(150)
    ImageDraw.Draw(picture).text((200, 130), words, fill=colour, font=font, anchor="mm")
    return picture


def main() -> None:
    red_circle().save(FOLDER / "red_circle.png")
    star_and_square().save(FOLDER / "star_and_square.png")
    three_triangles().save(FOLDER / "three_triangles.png")
    text("7", "black", "#fff4d6").save(FOLDER / "seven.png")
    text("STOP", "white", "#c01818").save(FOLDER / "stop.png")


if __name__ == "__main__":
    main()
