"""What people ask about a scene, and what to answer.

Owns which questions suit a scene, and how often each is asked. Knows nothing of pixels or tokens.
"""

from collections.abc import Callable
from random import Random

from spyglass_training.drawing.scenes import Scene
from spyglass_training.talk import anything, one, several
from spyglass_training.talk.phrases import Question

Asker = Callable[[Scene, Random], Question | None]


def ask(scene: Scene, rng: Random) -> Question:
    """A random question about the scene."""
    askers = _ASKERS[scene.kind]
    while True:
        asker = rng.choices([a for a, _ in askers], [weight for _, weight in askers])[0]
        if (question := asker(scene, rng)) is not None:
            return question


def ask_about(about: str, scene: Scene, rng: Random) -> Question | None:
    """A question of one sort, or None where the scene has no answer to it."""
    return _BY_NAME[about](scene, rng)


_BY_NAME: dict[str, Asker] = {
    "colour": one.colour,
    "shape": one.shape,
    "count": several.count,
    "pick colour": several.pick_colour,
    "pick shape": several.pick_shape,
    "relation": several.relation,
    "text": one.text,
    "describe": anything.describe,
}
_ALWAYS: tuple[tuple[Asker, float], ...] = (
    (anything.describe, 1.0),
    (anything.what, 0.7),
    (anything.ground, 0.4),
    (anything.yes_no, 0.6),
    (anything.absent, 0.2),
)
_ASKERS: dict[str, tuple[tuple[Asker, float], ...]] = {
    "one": (*_ALWAYS, (one.colour, 2.5), (one.shape, 2.5), (several.count, 0.4)),
    "two": (
        *_ALWAYS,
        (several.pick_colour, 4),
        (several.pick_shape, 3.5),
        (several.relation, 5),
        (several.end, 0.8),
        (several.count, 0.4),
    ),
    "several": (
        *_ALWAYS,
        (several.count, 6),
        (several.pick_colour, 0.5),
        (several.pick_shape, 0.5),
        (one.colour, 0.3),
        (one.shape, 0.3),
    ),
    "digit": (*_ALWAYS[:3], (one.text, 4), (one.colour, 0.8)),
    "number": (*_ALWAYS[:3], (one.text, 4), (one.colour, 0.5)),
    "word": (*_ALWAYS[:3], (one.text, 4), (one.colour, 0.5)),
    "nothing": ((anything.describe, 1), (anything.what, 1), (several.count, 0.0)),
}
