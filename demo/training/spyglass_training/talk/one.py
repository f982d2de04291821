"""Questions about the only thing on a picture.

Owns wordings and answers. Knows nothing of pixels or tokens.
"""

from random import Random

from spyglass_training.drawing.scenes import Scene
from spyglass_training.talk.phrases import Question, a, question, sentence


def colour(scene: Scene, rng: Random) -> Question | None:
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
    return question("colour", rng, wordings, answer, thing.colour, noun=noun)


def shape(scene: Scene, rng: Random) -> Question | None:
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
    thing = scene.things[0]
    return question("shape", rng, wordings, sentence(a(thing.name)), thing.name, adjective=thing.colour)


def text(scene: Scene, rng: Random) -> Question | None:
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
        return question(scene.kind, rng, wordings, f"It says {key}.", key)
    noun = ("digit", "number") if scene.kind == "digit" else ("number", "number")
    wordings = (
        *wordings[:3],
        *(f"{w} {n} {end}" for n in noun for w in ("What", "Which") for end in ("is this?", "is it?", "do you see?")),
        *(f"What {n} is {end}" for n in noun for end in ("shown?", "in the {picture}?", "written here?")),
        *(f"{verb} the {n}." for n in noun for verb in ("Read", "Name")),
    )
    answer = scene.things[0].name
    return question(scene.kind, rng, wordings, sentence(answer), answer)


def _text_noun(scene: Scene, rng: Random) -> str:
    return rng.choice((scene.kind, scene.kind, "text"))
