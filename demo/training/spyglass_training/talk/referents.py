"""Which things a text speaks of.

Owns the finding of noun phrases. Knows nothing of tokens or pixels.
"""

import re
from dataclasses import dataclass

from spyglass_training.drawing.scenes import Scene
from spyglass_training.world import COLOURS, SHAPES

_PHRASE = re.compile(
    rf"\b(?:(?P<colour>{'|'.join(COLOURS)})\s+)?(?:(?P<shape>{'|'.join(SHAPES)})(?:es|s)?|(?:shape|object|one|thing)s?)\b"
    rf"|\b(?P<alone>{'|'.join(COLOURS)})\b(?! background)"
    r"|\b(?:digit|number|word|text)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Referent:
    """Characters start … end - 1 speak of these things of the scene, given by their places in it."""

    start: int
    end: int
    things: tuple[int, ...]


def referents(text: str, scene: Scene) -> list[Referent]:
    """The phrases that speak of things on the scene, in order."""
    found = []
    for match in _PHRASE.finditer(text):
        colour = (match["colour"] or match["alone"] or "").lower()
        shape = (match["shape"] or "").lower()
        things = tuple(
            i
            for i, thing in enumerate(scene.things)
            if (not shape or (thing.name == shape and not thing.is_text)) and (not colour or thing.colour == colour)
        )
        if things:
            found.append(Referent(match.start(), match.end(), things))
    for thing in scene.things:
        if thing.is_text:
            written = re.finditer(rf"\b{re.escape(thing.name)}\b", text, re.IGNORECASE)
            found.extend(Referent(match.start(), match.end(), (0,)) for match in written)
    return sorted(found, key=lambda referent: referent.start)
