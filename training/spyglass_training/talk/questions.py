"""What people ask about a scene, and what to answer.

Owns wordings and answers. Knows nothing of pixels or tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spyglass_training.drawing.scenes import Scene, Thing
from spyglass_training.world import COLOURS, COUNTS, SHAPES

UNKNOWN = "I see no shape or text that I know in this picture."
_TO_THE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_OF = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_ENDS = {
    "left": ("on the left", "left"),
    "right": ("on the right", "right"),
    "above": ("at the top", "top"),
    "below": ("at the bottom", "bottom"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer. `about` is what it asks for, `key` what of the answer is the point.

    Answers speak of the thing again before they tell of it: when the model has written "The star is", it has
    the star in mind, and finds it.
    """

    about: str
    text: str
    answer: str
    key: str = ""


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


def _question(about: str, rng: Random, wordings: tuple[str, ...], answer: str, key: str = "", **names: str) -> Question:
    names.setdefault("colour", rng.choice(("colour", "color")))
    names.setdefault("picture", rng.choice(("picture", "image")))
    text = rng.choice(wordings).format(**names)
    return Question(about, _casual(text, rng), answer, key)


def _casual(text: str, rng: Random) -> str:
    """How people type: now and then in small letters, without the mark at the end, or politely."""
    style = rng.random()
    if style < 0.06:
        return text.lower()
    if style < 0.12:
        return text.rstrip("?.")
    if style < 0.15:
        return text + rng.choice((" Answer briefly.", " Be brief."))
    if style < 0.18 and text[0] in "WHD":
        return f"{rng.choice(('Please tell me:', 'Hi!', 'Look at this.'))} {text}"
    return text


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.name}"


def _colour(scene: Scene, rng: Random) -> Question | None:
    """Of the only thing."""
    if len(scene.things) != 1:
        return None
    thing = scene.things[0]
    noun = _text_noun(scene, rng) if thing.is_text else rng.choice((thing.name, thing.name, "shape", "object"))
    wordings = (
        "What {colour} is the {noun}?",
        "What {colour} is the {noun}?",
        "Which {colour} is the {noun}?",
        "What {colour} is it?",
        "What is the {colour} of the {noun}?",
        "Tell me the {colour} of the {noun}.",
        "Which {colour} does the {noun} have?",
        "What {colour} is this {noun}?",
        "What {colour} is the {noun} in the {picture}?",
        "Name the {colour} of this {noun}.",
    )
    answer = f"The {scene.kind if thing.is_text else thing.name} is {thing.colour}."
    return _question("colour", rng, wordings, answer, thing.colour, noun=noun)


def _shape(scene: Scene, rng: Random) -> Question | None:
    """Of the only thing."""
    if len(scene.things) != 1 or scene.things[0].is_text:
        return None
    wordings = (
        "What shape is this?",
        "What shape is it?",
        "Which shape is this?",
        "Which shape is it?",
        "Which shape do you see?",
        "What shape is in the {picture}?",
        "What is the shape of the object?",
        "Name the shape.",
        "What kind of shape is shown?",
        "What shape is the {adjective} object?",
        "What shape does the {picture} show?",
    )
    shape = scene.things[0].name
    return _question("shape", rng, wordings, _sentence(_a(shape)), shape, adjective=scene.things[0].colour)


def _count(scene: Scene, rng: Random) -> Question | None:
    """Of all things, or of those of one shape or colour."""
    what = rng.random()
    things = scene.things
    if what < 0.3:
        noun, number = rng.choice(("shapes", "objects", "things")), len(things)
    elif what < 0.9 or not things:
        present = sorted({thing.name for thing in things})
        name = rng.choice(present) if present and rng.random() < 0.94 else rng.choice(SHAPES)
        noun, number = _plural(name), sum(thing.name == name for thing in things)
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
    return _question("count", rng, wordings, answer, key, noun=noun)


def _pick_colour(scene: Scene, rng: Random) -> Question | None:
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
    return _question("pick colour", rng, wordings, answer, thing.colour, noun=thing.name)


def _pick_shape(scene: Scene, rng: Random) -> Question | None:
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
    answer = f"The {thing.colour} shape is {_a(thing.name)}."
    return _question("pick shape", rng, wordings, answer, thing.name, noun=thing.colour)


def _relation(scene: Scene, rng: Random) -> Question | None:
    """Of two things that lie clearly beside or above each other."""
    if len(scene.things) != 2 or not scene.is_clear():
        return None
    thing, other = rng.sample(scene.things, 2)
    side = scene.side(thing, other)
    sides = ("left", "right") if side in ("left", "right") else ("above", "below")
    one, two = sides if rng.random() < 0.5 else sides[::-1]
    nouns = {"a": _called(thing, rng), "b": _called(other, rng), "one": one, "two": two, "to": _TO_THE[side]}
    answer = f"The {thing.name} lies {_OF[side]} the {other.name}."
    what = rng.random()
    if what < 0.4:
        to = "of " if side in ("left", "right") else ""
        wordings: tuple[str, ...] = (
            "Is the {a} {one} or {two} {of}the {b}?",
            "Is the {a} {one_of} or {two_of} the {b}?",
            "Is the {a} {one} or {two} {of}the {b}?",
        )
        nouns |= {"of": to, "one_of": _TO_THE[one], "two_of": _TO_THE[two]}
        return _question("relation", rng, wordings, answer, side, **nouns)
    if what < 0.75:
        wordings = (
            "What is {to} the {b}?",
            "What is {short} the {b}?",
            "What do you see {to} the {b}?",
            "Which object is {to} the {b}?",
            "What lies {to} the {b}?",
        )
        nouns["short"] = _OF[side]
        found = _sentence(f"{_OF[side]} the {other.name} is {_a(_name(thing))}")
        return _question("relation", rng, wordings, found, _name(thing), **nouns)
    wordings = ("Where is the {a}?", "Where is the {a}, seen from the {b}?", "Where does the {a} lie?")
    return _question("where", rng, wordings, answer, side, **nouns)


def _end(scene: Scene, rng: Random) -> Question | None:
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
        return _question("end", rng, wordings, _sentence(f"{place} is {_a(_name(thing))}"), place=place)
    wordings = ("What {colour} is the {adjective} shape?", "What {colour} is the object {place}?")
    answer = f"The shape {place} is {thing.colour}."
    return _question("end", rng, wordings, answer, place=place, adjective=adjective)


def _yes_no(scene: Scene, rng: Random) -> Question | None:
    """Whether something is there, or has a colour."""
    shapes = [thing for thing in scene.things if not thing.is_text]
    if not shapes:
        return None
    thing, truth = rng.choice(shapes), rng.random() < 0.5
    here = {t.name for t in shapes}
    what = rng.random()
    if what < 0.35 and sum(t.name == thing.name for t in shapes) == 1:
        colour = thing.colour if truth else rng.choice([c for c in COLOURS if c != thing.colour])
        wordings = ("Is the {noun} {word}?", "Is the {noun} {word}?", "Does the {noun} have the {colour} {word}?")
        answer = f"{'Yes' if truth else 'No'}, the {thing.name} is {thing.colour}."
        return _question("yes or no", rng, wordings, answer, noun=thing.name, word=colour)
    name = thing.name if truth else rng.choice([s for s in SHAPES if s not in here])
    if what < 0.6 and len(shapes) == 1:
        wordings = ("Is this {noun}?", "Is it {noun}?", "Is the shape {noun}?")
    else:
        wordings = ("Is there {noun}?", "Do you see {noun}?", "Is there {noun} in the {picture}?")
    return _question("yes or no", rng, wordings, "Yes." if truth else "No.", noun=_a(name))


def _absent(scene: Scene, rng: Random) -> Question | None:
    """Of something that is not there."""
    if not scene.things or scene.things[0].is_text:
        return None
    here = {t.name for t in scene.things}
    noun = rng.choice([shape for shape in SHAPES if shape not in here])
    wordings = ("What {colour} is the {noun}?", "Where is the {noun}?", "What is to the left of the {noun}?")
    return _question("absent", rng, wordings, f"There is no {noun}.", noun=noun)


def _ground(scene: Scene, rng: Random) -> Question | None:
    if not scene.ground.name or scene.kind == "nothing":
        return None
    wordings = (
        "What {colour} is the background?",
        "What is the {colour} of the background?",
        "Which {colour} is the background?",
        "What {colour} is the background of the {picture}?",
    )
    return _question("background", rng, wordings, f"The background is {scene.ground.name}.")


def _text(scene: Scene, rng: Random) -> Question | None:
    if len(scene.things) != 1 or not scene.things[0].is_text:
        return None
    wordings: tuple[str, ...] = (
        "What does it say?",
        "What is written here?",
        "Read the text.",
        "What does the {picture} say?",
        "What text is in the {picture}?",
        "What can you read?",
        "What is written in the {picture}?",
    )
    if scene.kind == "word":
        wordings = (
            *wordings,
            "Which word is this?",
            "What word is it?",
            "What word do you see?",
            "Which word is written here?",
        )
        key = scene.things[0].name.lower()
        return _question(scene.kind, rng, wordings, f"It says {key}.", key)
    noun = ("digit", "number") if scene.kind == "digit" else ("number", "number")
    wordings = (
        *wordings[:3],
        *(f"{w} {n} {end}" for n in noun for w in ("What", "Which") for end in ("is this?", "is it?", "do you see?")),
        *(f"What {n} is {end}" for n in noun for end in ("shown?", "in the {picture}?", "written here?")),
        *(f"{verb} the {n}." for n in noun for verb in ("Read", "Name")),
    )
    answer = scene.things[0].name
    return _question(scene.kind, rng, wordings, _sentence(answer), answer)


def _what(scene: Scene, rng: Random) -> Question | None:
    wordings = (
        "What is this?",
        "What is it?",
        "What is shown?",
        "What is shown here?",
        "What does the {picture} show?",
    )
    return _question("what", rng, wordings, _sentence(_gist(scene)) if scene.things else UNKNOWN)


def _describe(scene: Scene, rng: Random) -> Question | None:
    wordings = (
        "Describe the {picture}.",
        "Describe this {picture}.",
        "What do you see?",
        "What is in the {picture}?",
        "What is in this {picture}?",
        "What can you see in this {picture}?",
        "Describe what you see.",
        "Please describe the {picture}.",
        "Describe this {picture} in a sentence.",
        "What's in this {picture}?",
    )
    if not scene.things:
        return _question("describe", rng, wordings, UNKNOWN)
    ground = f" on a {scene.ground.name} background" if scene.ground.name and len(scene.things) == 1 else ""
    return _question(
        "describe", rng, wordings, f"The picture shows {_gist(scene)}{ground}.".replace("a orange", "an orange")
    )


def _gist(scene: Scene) -> str:
    """What is there, in a few words."""
    things = sorted(scene.things, key=lambda t: t.x if scene.width >= scene.height else t.y)
    first = things[0]
    if first.is_text:
        noun = f'word "{first.name.lower()}"' if scene.kind == "word" else f"{scene.kind} {first.name}"
        return f"the {noun} in {first.colour}"
    if len(things) == 1:
        return _a(_name(first))
    if len(things) == 2 and scene.kind == "two" and scene.is_clear():
        return f"{_a(_name(first))} {_OF[scene.side(first, things[1])]} {_a(_name(things[1]))}"
    number, names, colours = COUNTS[len(things) - 1], {t.name for t in things}, {t.colour for t in things}
    if len(names) == 1 and len(colours) == 1:
        return f"{number} {first.colour} {_plural(first.name)}"
    if len(names) == 1:
        return f"{number} {_plural(first.name)}: {_list([t.colour for t in things])}"
    return _list([_a(_name(t)) for t in things])


def _text_noun(scene: Scene, rng: Random) -> str:
    return rng.choice((scene.kind, scene.kind, "text"))


def _called(thing: Thing, rng: Random) -> str:
    return thing.name if rng.random() < 0.65 else _name(thing)


def _alone_by(scene: Scene, key: Callable[[Thing], str], rng: Random) -> Thing | None:
    """One of several things which is the only one with its key."""
    keys = [key(thing) for thing in scene.things]
    alone = [thing for thing in scene.things if keys.count(key(thing)) == 1 and len(keys) > 1]
    return rng.choice(alone) if alone else None


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _list(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


_BY_NAME: dict[str, Asker] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "pick colour": _pick_colour,
    "pick shape": _pick_shape,
    "relation": _relation,
    "text": _text,
    "describe": _describe,
}
_ALWAYS: tuple[tuple[Asker, float], ...] = (
    (_describe, 1.0),
    (_what, 0.7),
    (_ground, 0.4),
    (_yes_no, 0.6),
    (_absent, 0.2),
)
_ASKERS: dict[str, tuple[tuple[Asker, float], ...]] = {
    "one": (*_ALWAYS, (_colour, 2.5), (_shape, 2.5), (_count, 0.4)),
    "two": (*_ALWAYS, (_pick_colour, 4), (_pick_shape, 3.5), (_relation, 5), (_end, 0.8), (_count, 0.4)),
    "several": (*_ALWAYS, (_count, 5), (_pick_colour, 0.5), (_pick_shape, 0.5), (_colour, 0.3), (_shape, 0.3)),
    "digit": (*_ALWAYS[:3], (_text, 4), (_colour, 0.8)),
    "number": (*_ALWAYS[:3], (_text, 4), (_colour, 0.5)),
    "word": (*_ALWAYS[:3], (_text, 4), (_colour, 0.5)),
    "nothing": ((_describe, 1), (_what, 1), (_count, 0.0)),
}
