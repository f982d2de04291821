"""The second hand draws what it says, in the sizes it promises, and the same for the same seed."""

import math
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from spyglass_training.exam.judge import KINDS, accepts
from spyglass_training.exam.other_hand import example, layout
from spyglass_training.exam.other_hand.colours import MIN_CONTRAST, Ground, Rgb, contrast, ground, value_of
from spyglass_training.exam.other_hand.drawing import FONTS, Font, Item, Look, Outline, Text, draw, outline
from spyglass_training.exam.other_hand.layout import Proportions
from spyglass_training.world import COLOURS, SHAPES, SIDES

RED = Rgb(200, 0, 0)
WHITE_GROUND = Ground((Rgb(255, 255, 255),), 0, frozenset({"white"}))
randoms = st.integers(0, 2**32).map(Random)
proportions = st.builds(Proportions, st.floats(0.4, 2.6), st.floats(-15, 15))
few = settings(max_examples=8)
many = settings(max_examples=40)


def drawn(form: Outline | Text, width: float, height: float, finish: str = "plain") -> Image.Image:
    """The form in the middle of 200 x 100 white pixels."""
    return draw(200, 100, WHITE_GROUND, [Item(form, Look(RED, finish), 100, 50, width, height, 0)])


def inked_box(picture: Image.Image) -> tuple[int, int, int, int]:
    box = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L").point(_is_dark).getbbox()
    assert box
    return box


def _is_dark(value: int) -> int:
    return 255 if value > 40 else 0


def red_share(picture: Image.Image) -> float:
    """The red area by the area of the box around it."""
    left, top, right, bottom = inked_box(picture)
    reds = picture.crop((left, top, right, bottom)).getchannel("G").point(lambda value: 1 if value < 128 else 0)
    return sum(reds.tobytes()) / ((right - left) * (bottom - top))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_example_again(kind: str) -> None:
    one, again, other = example(kind, 5), example(kind, 5), example(kind, 7)
    assert (one.question, one.expected) == (again.question, again.expected)
    assert one.picture.tobytes() == again.picture.tobytes()
    assert one.picture.tobytes() != other.picture.tobytes()


@few
@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_every_example_fits_the_exam(kind: str, seed: int) -> None:
    made = example(kind, seed)
    assert made.kind == kind
    assert made.picture.mode == "RGB"
    assert "{" not in made.question
    said = " and ".join(text for text in made.expected if not text.endswith(" ground"))
    assert accepts(said, made)
    assert not accepts("a hexagon", made)
    low, high = zip(*made.picture.getextrema(), strict=True)
    assert contrast(Rgb(*low), Rgb(*high)) > MIN_CONTRAST / 2  # something is drawn


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind"):
        example("smell", 1)
    with pytest.raises(ValueError, match="no shape"):
        outline("hexagon", 0.3, 0.4)


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.file)
def test_text_fills_its_box(font: Font) -> None:
    text = Text("Up42", font)
    left, top, right, bottom = text.ink()
    picture = drawn(text, 80, 80 * (bottom - top) / (right - left))
    box = inked_box(picture)
    assert box[0] == pytest.approx(60, abs=3)
    assert box[2] == pytest.approx(140, abs=3)
    assert (box[1] + box[3]) / 2 == pytest.approx(50, abs=3)


def test_every_font_looks_different() -> None:
    assert len({drawn(Text("Go7", font), 80, 60).tobytes() for font in FONTS}) == len(FONTS)


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ("circle", math.pi / 4), ("oval", math.pi / 4), ("square", 1), ("rectangle", 1), ("triangle", 0.5),
        ("diamond", 0.5), ("cross", 0.51), ("heart", 0.63), ("star", 0.38),
    ],
)  # fmt: skip
def test_every_shape_fills_its_box_as_it_should(shape: str, share: float) -> None:
    picture = drawn(outline(shape, 0.3, 0.45), 150, 90)
    assert inked_box(picture) == pytest.approx((25, 5, 175, 95), abs=2)
    assert red_share(picture) == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("finish", ["linear", "radial", "outlined"])
def test_every_finish_keeps_the_box_and_the_inside(finish: str) -> None:
    picture = drawn(outline("circle", 0.3, 0.45), 90, 90, finish)
    assert inked_box(picture) == pytest.approx((55, 5, 145, 95), abs=2)
    assert contrast(Rgb(*_pixel(picture, 100, 50)), RED) < 30


def test_a_hollow_shape_shows_the_ground() -> None:
    picture = drawn(outline("circle", 0.3, 0.45), 90, 90, "hollow")
    assert inked_box(picture) == pytest.approx((55, 5, 145, 95), abs=2)
    assert _pixel(picture, 100, 50) == (255, 255, 255)


def _pixel(picture: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value[0], value[1], value[2]


@many
@given(randoms)
def test_pictures_have_the_sizes_of_the_exam(rng: Random) -> None:
    size = layout.canvas(rng)
    assert 100 <= size.short <= max(size.width, size.height) <= 1500
    assert max(size.width, size.height) <= 4.05 * size.short


@many
@given(randoms, proportions)
def test_a_single_object_is_large_and_inside(rng: Random, form: Proportions) -> None:
    size = layout.canvas(rng)
    box = layout.alone(rng, size, form)
    assert 0.2 * size.short <= min(box.width, box.height) <= 0.76 * size.short
    assert box.width / box.height == pytest.approx(form.ratio)
    assert _is_inside(box, size)


@few
@given(randoms, st.lists(proportions, min_size=2, max_size=4))
def test_several_objects_do_not_touch(rng: Random, forms: list[Proportions]) -> None:
    size = layout.canvas(rng)
    boxes = layout.apart(rng, size, forms)
    assert all(_is_inside(box, size) and min(box.width, box.height) >= 0.1 * size.short for box in boxes)
    for one, other in combinations(boxes, 2):
        reach = [a + b for a, b in zip(one.reach, other.reach, strict=True)]
        assert abs(one.x - other.x) > reach[0] or abs(one.y - other.y) > reach[1]


@few
@given(randoms, proportions, proportions, st.sampled_from(SIDES))
def test_the_first_object_is_at_the_side(rng: Random, first: Proportions, second: Proportions, side: str) -> None:
    one, other = layout.beside(rng, layout.canvas(rng), (first, second), side)
    across, down = one.x - other.x, one.y - other.y
    along, astray = (across, down) if side in {"left", "right"} else (down, across)
    assert (along < 0) == (side in {"left", "above"})
    assert abs(along) > 2 * abs(astray)


@many
@given(randoms, proportions)
def test_text_is_inside(rng: Random, form: Proportions) -> None:
    size = layout.canvas(rng)
    assert _is_inside(layout.filling(rng, size, form), size)


def _is_inside(box: layout.Box, size: layout.Canvas) -> bool:
    x, y = box.reach
    return x <= box.x <= size.width - x and y <= box.y <= size.height - y


@many
@given(randoms, st.sampled_from(COLOURS))
def test_a_ground_tells_which_colours_are_seen_on_it(rng: Random, name: str) -> None:
    below, value = ground(rng), value_of(rng, name)
    assert below.names <= set(COLOURS)
    assert not below.shows(below.stops[0])
    assert not below.shows(value) or min(contrast(stop, value) for stop in below.stops) >= MIN_CONTRAST


def test_yellow_is_seen_but_not_read_on_white() -> None:
    yellow = Rgb(255, 255, 0)
    assert WHITE_GROUND.shows(yellow)
    assert not WHITE_GROUND.is_legible(yellow)
    assert WHITE_GROUND.is_legible(RED)


def test_every_shape_has_an_outline() -> None:
    assert all(outline(shape, 0.3, 0.4).points for shape in SHAPES)
