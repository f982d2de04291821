"""Questions that tell several things on a picture apart.

Owns wordings and answers. Knows nothing of pixels or tokens.
"""

from collections.abc import Callable
from random import Random

from spyglass_training.drawing.scenes import Scene, Thing
from spyglass_training.talk.phrases import OF, TO_THE, Question, a, called, name_of, plural, question, sentence
from spyglass_training.world import COUNTS, SHAPES

_ENDS = {
    "left": ("on the left", "left"),
    "right": ("on the right", "right"),
    "above": ("at the top", "top"),
    "below": ("at the bottom", "bottom"),
}


def count(scene: Scene, rng: Random) -> Question | None:
    """Of all things, or of those of one shape or colour."""
    what = rng.random()
    things = scene.things
    if what < 0.3:
        noun, number = rng.choice(("shapes", "objects", "things")), len(things)
    elif what < 0.9 or not things:
        present = sorted({thing.name for thing in things})
        name = rng.choice(present) if present and rng.random() < 0.94 else rng.choice(SHAPES)
        noun, number = plural(name), sum(thing.name == name for thing in things)
    else:
        colour = rng.choice(sorted({thing.colour for thing in things}))
        noun, number = f"{colour} shapes", sum(thing.colour == colour for thing in things)
    wordings = (
        "How many {noun} are there?",
        "How many {noun} are there?",
        "How many {noun} do you see?",
        "How many {noun} are in the {picture}?",
        "How many {noun} does the {picture} show?",
        "How many {noun} can you see?",
        "How many {noun} are shown?",
        "Count the {noun}.",
        "What is the number of {noun}?",
    )
    key = COUNTS[number - 1] if number else "zero"
    answer = f"The number of {noun} is {key}."
    return question("count", rng, wordings, answer, key, noun=noun)


def pick_colour(scene: Scene, rng: Random) -> Question | None:
    """Of a thing that its shape tells from the others."""
    thing = _alone_by(scene, lambda t: t.name, rng)
    if thing is None:
        return None
    wordings = (
        "What {colour} is the {noun}?",
        "What {colour} is the {noun}?",
        "Which {colour} is the {noun}?",
        "What is the {colour} of the {noun}?",
        "Tell me the {colour} of the {noun}.",
        "Which {colour} does the {noun} have?",
        "The {noun} is which {colour}?",
    )
    answer = f"The {thing.name} is {thing.colour}."
    return question("pick colour", rng, wordings, answer, thing.colour, noun=thing.name)


def pick_shape(scene: Scene, rng: Random) -> Question | None:
    """Of a thing that its colour tells from the others."""
    thing = _alone_by(scene, lambda t: t.colour, rng)
    if thing is None:
        return None
    wordings = (
        "What shape is the {noun} object?",
        "What shape is the {noun} one?",
        "Which shape is {noun}?",
        "What shape is {noun}?",
        "What is the shape of the {noun} object?",
        "Which shape is the {noun} one?",
        "What is the {noun} shape?",
        "What is the {noun} object?",
        "What {noun} shape is there?",
    )
    answer = f"The {thing.colour} shape is {a(thing.name)}."
    return question("pick shape", rng, wordings, answer, thing.name, noun=thing.colour)


def relation(scene: Scene, rng: Random) -> Question | None:
    """Of two things that lie clearly beside or above each other."""
    if len(scene.things) != 2 or not scene.is_clear():
        return None
    thing, other = rng.sample(scene.things, 2)
    side = scene.side(thing, other)
    sides = ("left", "right") if side in ("left", "right") else ("above", "below")
    one, two = sides if rng.random() < 0.5 else sides[::-1]
    nouns = {"a": called(thing, rng), "b": called(other, rng), "one": one, "two": two, "to": TO_THE[side]}
    answer = f"The {thing.name} lies {OF[side]} the {other.name}."
    what = rng.random()
    if what < 0.4:
        to = "of " if side in ("left", "right") else ""
        wordings: tuple[str, ...] = (
            "Is the {a} {one} or {two} {of}the {b}?",
            "Is the {a} {one_of} or {two_of} the {b}?",
            "Is the {a} {one} or {two} {of}the {b}?",
        )
        nouns |= {"of": to, "one_of": TO_THE[one], "two_of": TO_THE[two]}
        return question("relation", rng, wordings, answer, side, **nouns)
    if what < 0.75:
        wordings = (
            "What is {to} the {b}?",
            "What is {short} the {b}?",
            "What do you see {to} the {b}?",
            "Which object is {to} the {b}?",
            "What lies {to} the {b}?",
        )
        nouns["short"] = OF[side]
        found = sentence(f"{OF[side]} the {other.name} is {a(name_of(thing))}")
        return question("relation", rng, wordings, found, name_of(thing), **nouns)
    wordings = ("Where is the {a}?", "Where is the {a}, seen from the {b}?", "Where does the {a} lie?")
    return question("where", rng, wordings, answer, side, **nouns)


def end(scene: Scene, rng: Random) -> Question | None:
    """Of the thing at one end of two."""
    if len(scene.things) != 2 or not scene.is_clear():
        return None
    thing, other = rng.sample(scene.things, 2)
    place, adjective = _ENDS[scene.side(thing, other)]
    if rng.random() < 0.5:
        wordings: tuple[str, ...] = (
            "What is {place}?",
            "Which shape is {place}?",
            "Which object is {place}?",
            "What do you see {place}?",
        )
        return question("end", rng, wordings, sentence(f"{place} is {a(name_of(thing))}"), place=place)
    wordings = ("What {colour} is the {adjective} shape?", "What {colour} is the object {place}?")
    answer = f"The shape {place} is {thing.colour}."
    return question("end", rng, wordings, answer, place=place, adjective=adjective)


def _alone_by(scene: Scene, key: Callable[[Thing], str], rng: Random) -> Thing | None:
    """One of several things which is the only one with its key."""
    keys = [key(thing) for thing in scene.things]
    alone = [thing for thing in scene.things if keys.count(key(thing)) == 1 and len(keys) > 1]
    return rng.choice(alone) if alone else None
