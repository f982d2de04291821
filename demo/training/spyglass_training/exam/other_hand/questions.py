"""What the second hand asks: for each kind a picture that answers it, in wordings of its own.

Owns the wordings and the expected answers. Knows nothing of how pictures are made.
"""

from random import Random
from types import MappingProxyType

from spyglass_training.exam.judge import Example
from spyglass_training.exam.other_hand.scenes import Scene, like_shapes, one_shape, shapes_beside, two_shapes, written
from spyglass_training.world import COUNTS, SIDES, WORDS

_DESCRIBED = ("colour", "colour", "pick colour", "pick colour", "count", "digit", "number", "word")
_WORDINGS = MappingProxyType(
    {
        "colour": (
            "What colour is the {shape}?",
            "Which color does the {shape} have?",
            "Tell me the colour of this shape.",
            "What is the color of the {shape} in this picture?",
            "Name the colour of the {shape}.",
        ),
        "shape": (
            "What shape is this?",
            "Which shape do you see?",
            "Name the shape in the picture.",
            "What kind of shape is drawn here?",
            "What is the {colour} shape called?",
        ),
        "count": (
            "How many {shapes} are there?",
            "How many {shapes} can you count?",
            "Count the {shapes} in the image.",
            "What is the number of {shapes} here?",
        ),
        "digit": (
            "What digit is this?",
            "Which digit is shown?",
            "What number can you see?",
            "Read the digit.",
        ),
        "pick colour": (
            "What colour is the {shape}?",
            "Which color does the {shape} have?",
            "Tell me the colour of the {shape}.",
        ),
        "pick shape": (
            "What shape is the {colour} one?",
            "Which shape is {colour}?",
            "What is the shape of the {colour} object?",
        ),
        "number": (
            "What number is written here?",
            "Which number do you see?",
            "Read the number.",
        ),
        "word": (
            "What does it say?",
            "Which word is written in the image?",
            "Read the word in this picture.",
            "What is written here?",
        ),
        "describe": (
            "Describe the picture.",
            "What do you see?",
            "What is in this image?",
            "Describe what is shown here.",
        ),
    }
)
_SIDE_WORDINGS = MappingProxyType(
    {
        "left": ("Is the {first} to the left or to the right of the {second}?", "What is left of the {second}?"),
        "right": ("Is the {first} left or right of the {second}?", "What is to the right of the {second}?"),
        "above": ("Is the {first} above or below the {second}?", "What is above the {second}?"),
        "below": ("Is the {first} below or above the {second}?", "What is below the {second}?"),
    }
)
"""For each side a question for the side, and one for the object that lies there."""


def example(kind: str, seed: int) -> Example:
    """A question of the kind; the same for the same seed. Raises ValueError for a kind that is none."""
    rng = Random(f"other hand, {kind}, {seed}")
    if kind == "relation":
        return _relation(rng)
    if kind == "describe":
        return _description(rng)
    scene = _scene(rng, kind)
    thing = rng.choice(scene.things)
    question = rng.choice(_WORDINGS[kind])
    question = question.format(colour=thing.colour, shape=thing.name, shapes=_plural(thing.name))
    expected = {
        "colour": thing.colour,
        "pick colour": thing.colour,
        "count": COUNTS[len(scene.things) - 1],
    }.get(kind, thing.name)
    return Example(kind, scene.picture, question, frozenset({expected}))


def _relation(rng: Random) -> Example:
    side = rng.choice(SIDES)
    scene = shapes_beside(rng, side)
    first, second = (rng.choice((thing.name, str(thing))) for thing in scene.things)
    is_side_asked = rng.random() < 0.6
    question = _SIDE_WORDINGS[side][0 if is_side_asked else 1].format(first=first, second=second)
    return Example("relation", scene.picture, question, frozenset({side if is_side_asked else str(scene.things[0])}))


def _description(rng: Random) -> Example:
    scene = _scene(rng, rng.choice(_DESCRIBED))
    expected = {str(thing) for thing in scene.things} | {f"{name} ground" for name in scene.ground_names}
    if len(set(scene.things)) < len(scene.things):
        expected.add(COUNTS[len(scene.things) - 1])
    return Example("describe", scene.picture, rng.choice(_WORDINGS["describe"]), frozenset(expected))


def _scene(rng: Random, kind: str) -> Scene:
    match kind:
        case "colour" | "shape":
            return one_shape(rng)
        case "pick colour" | "pick shape":
            return two_shapes(rng)
        case "count":
            return like_shapes(rng)
        case "digit":
            return written(rng, str(rng.randrange(10)))
        case "number":
            return written(rng, str(rng.randrange(*rng.choice(((10, 100), (100, 1000))))))
        case "word":
            return written(rng, rng.choice(WORDS))
        case _:
            raise ValueError(f"an exam has no kind {kind!r}")


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"
