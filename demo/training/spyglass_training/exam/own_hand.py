"""Exam pictures by the training's own hand: the same drawing and wordings, other seeds.

Owns which scene suits which kind of question, and what a right answer says. Knows nothing of judging.
"""

from random import Random

from spyglass_training.drawing.paint import paint
from spyglass_training.drawing.scenes import Scene, draw_lots, draw_size
from spyglass_training.exam.judge import Example
from spyglass_training.talk.phrases import Question
from spyglass_training.talk.questions import ask_about
from spyglass_training.world import COLOURS, COUNTS

_SCENES = {
    "colour": ("one",),
    "shape": ("one",),
    "count": ("several",),
    "digit": ("digit",),
    "pick colour": ("two",),
    "pick shape": ("two",),
    "relation": ("two",),
    "number": ("number",),
    "word": ("word",),
    "describe": ("one", "two", "several", "digit", "number", "word"),
}
_ABOUT = {"digit": "text", "number": "text", "word": "text"}
_LONGEST = 1500  # pixels


def example(kind: str, seed: int) -> Example:
    """The picture and question of a seed, always the same; pictures have 100 to 1500 pixels a side."""
    return example_with_answer(kind, seed)[0]


def example_with_answer(kind: str, seed: int) -> tuple[Example, str]:
    """The same, and the answer that the training would teach."""
    rng = Random(f"exam/{kind}/{seed}")
    while True:
        scene = draw_lots(rng.choice(_SCENES[kind]), *draw_size(rng, _LONGEST), rng)
        picture, scene, _ = paint(scene, rng)
        question = ask_about(_ABOUT.get(kind, kind), scene, rng)
        if question is not None and (kind != "count" or question.key != "zero"):
            return Example(kind, picture, question.text, _expected(kind, scene, question)), question.answer


def _expected(kind: str, scene: Scene, question: Question) -> frozenset[str]:
    return frozenset(_contents(scene)) if kind == "describe" else frozenset({question.key})


def _contents(scene: Scene) -> list[str]:
    """Everything on the picture, and what may be said of the ground."""
    things = [f"{thing.colour} {thing.name.lower()}" for thing in scene.things]
    grounds = [scene.ground.name] if scene.ground.name else list(COLOURS)
    several = [COUNTS[len(things) - 1]] if len(set(things)) < len(things) else []
    return [*things, *several, *(f"{colour} ground" for colour in grounds)]
