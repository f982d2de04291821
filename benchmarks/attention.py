"""Compares the attention that the server reports with the positions of the things in a picture.

    python benchmarks/attention.py
    python benchmarks/attention.py --model /models/Llama-3.2-11B-Vision-Instruct --pictures 200

Each drawn picture has two things of different shape and colour, and the model is asked for the colour of one of them.
The attention of the answer's first token inside the box of the thing in question is compared with that inside the
other's and, to check the measure itself, with that inside the boxes of other pictures.
"""

import argparse
import asyncio
import io
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw

from bars import Bar, report
from processes import MODEL, checkpoint_or_demo
from service import Service
from spyglass_client import AsyncClient, ImageGrid, average_weights

_KEY = "sk-attention"
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
_SHAPES = ("circle", "square", "triangle")
_SIDES = ((200, 200), (260, 180), (180, 260), (320, 240))
_NOTHING = 1e-9

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture of two things, the first of which is asked about."""

    data: bytes
    question: str
    colour: str
    boxes: tuple[Box, Box]


def draw(chance: random.Random) -> Drawn:
    """Draws two things at random positions on white, apart from each other."""
    width, height = chance.choice(_SIDES)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    shapes, colours = chance.sample(_SHAPES, 2), chance.sample(_COLOURS, 2)
    side = int(min(width, height) * chance.uniform(0.3, 0.4))
    while True:
        (x1, y1), (x2, y2) = corners = [
            (chance.randint(5, width - side - 5), chance.randint(5, height - side - 5)) for _ in range(2)
        ]
        if max(abs(x1 - x2), abs(y1 - y2)) > side + 10:
            break
    boxes = []
    for shape, colour, (x, y) in zip(shapes, colours, corners, strict=True):
        box = (x, y, x + side, y + side)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
        boxes.append((x / width, y / height, (x + side) / width, (y + side) / height))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Drawn(
        data=file.getvalue(),
        question=f"What colour is the {shapes[0]}?",
        colour=colours[0],
        boxes=(boxes[0], boxes[1]),
    )


def inside(weights: Sequence[float], grid: ImageGrid, box: Box) -> float:
    """Sums the attention to the patches whose centres are in the box."""
    left, top, right, bottom = box
    total = 0.0
    for row in range(grid.rows):
        for column in range(grid.columns):
            x, y = (column + 0.5) / grid.covered_columns, (row + 0.5) / grid.covered_rows
            if left <= x < right and top <= y < bottom:
                total += weights[row * grid.columns + column]
    return total


def ratio(weights: Sequence[float], grid: ImageGrid, boxes: tuple[Box, Box]) -> float:
    """Returns the ratio of the first box's attention to the second's."""
    asked, other = (inside(weights, grid, box) for box in boxes)
    return (asked + _NOTHING) / (other + _NOTHING)


async def look(address: str, pictures: Sequence[Drawn], layers: Sequence[int]) -> tuple[list[float], list[float], int]:
    """Returns the ratios for the pictures' own boxes and for all others', and the number of right answers."""
    own, others, num_right = [], [], 0
    async with AsyncClient(address, api_key=_KEY) as client:
        for one in pictures:
            answer = await client.generate(
                one.question,
                images=[one.data],
                model=MODEL,
                temperature=0,
                max_tokens=8,
                image_attention=layers or True,
            )
            [grid] = answer.image_grids
            weights = average_weights(grid, answer.choices[0].attention[:1])
            own.append(ratio(weights, grid, one.boxes))
            others += [ratio(weights, grid, other.boxes) for other in pictures if other is not one]
            num_right += one.colour in answer.text.lower()
    return own, others, num_right


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--pictures", type=int, default=60, help="how many are drawn (default: %(default)s)")
    add("--layers", type=int, nargs="*", default=[], help="cross-attention layers to average (default: all)")
    add("--seed", type=int, default=0, help="of everything that is random (default: %(default)s)")
    add("--verbose", action="store_true", help="shows what server and bridge say")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    chance = random.Random(given.seed)
    pictures = [draw(chance) for _ in range(given.pictures)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Service.started(
            checkpoint_or_demo(given.model), Path(folder), keys=(_KEY,), options=("--engine", "model"),
            verbose=given.verbose,
        ) as service,
    ):  # fmt: skip
        own, others, num_right = asyncio.run(look(service.grpc, pictures, given.layers))
    print(f"{len(pictures)} pictures; the colour is right in {num_right}\n")
    return report(
        [
            Bar.at_least("attention in the box asked about, times that in the other, median", median(own), 5),
            Bar.at_least("pictures in which it is more", 100 * sum(one > 1 for one in own) / len(own), 95, "%"),
            Bar.at_least("with the boxes of another picture, median", median(others), 0.7),
            Bar.at_most("with the boxes of another picture, median", median(others), 1.4),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
