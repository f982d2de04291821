"""Questions about any picture: what there is, whether something is there.

Owns wordings and answers. Knows nothing of pixels or tokens.
"""

from random import Random

from spyglass_training.drawing.scenes import Scene
from spyglass_training.talk.phrases import OF, Question, a, listing, name_of, plural, question, sentence
from spyglass_training.world import COLOURS, COUNTS, SHAPES

UNKNOWN = "I see no shape or text that I know in this picture."


def yes_no(scene: Scene, rng: Random) -> Question | None:
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
        return question("yes or no", rng, wordings, answer, noun=thing.name, word=colour)
    name = thing.name if truth else rng.choice([s for s in SHAPES if s not in here])
    if what < 0.6 and len(shapes) == 1:
        wordings = ("Is this {noun}?", "Is it {noun}?", "Is the shape {noun}?")
    else:
        wordings = ("Is there {noun}?", "Do you see {noun}?", "Is there {noun} in the {picture}?")
    return question("yes or no", rng, wordings, "Yes." if truth else "No.", noun=a(name))


def absent(scene: Scene, rng: Random) -> Question | None:
    """Of something that is not there."""
    if not scene.things or scene.things[0].is_text:
        return None
    here = {t.name for t in scene.things}
    noun = rng.choice([shape for shape in SHAPES if shape not in here])
    wordings = ("What {colour} is the {noun}?", "Where is the {noun}?", "What is to the left of the {noun}?")
    return question("absent", rng, wordings, f"There is no {noun}.", noun=noun)


def ground(scene: Scene, rng: Random) -> Question | None:
    if not scene.ground.name or scene.kind == "nothing":
        return None
    wordings = (
        "What {colour} is the background?",
        "What is the {colour} of the background?",
        "Which {colour} is the background?",
        "What {colour} is the background of the {picture}?",
    )
    return question("background", rng, wordings, f"The background is {scene.ground.name}.")


def what(scene: Scene, rng: Random) -> Question | None:
    wordings = (
        "What is this?",
        "What is it?",
        "What is shown?",
        "What is shown here?",
        "What does the {picture} show?",
    )
    return question("what", rng, wordings, sentence(_gist(scene)) if scene.things else UNKNOWN)


def describe(scene: Scene, rng: Random) -> Question | None:
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
        return question("describe", rng, wordings, UNKNOWN)
    ground = f" on a {scene.ground.name} background" if scene.ground.name and len(scene.things) == 1 else ""
    return question(
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
        return a(name_of(first))
    if len(things) == 2 and scene.kind == "two" and scene.is_clear():
        return f"{a(name_of(first))} {OF[scene.side(first, things[1])]} {a(name_of(things[1]))}"
    number, names, colours = COUNTS[len(things) - 1], {t.name for t in things}, {t.colour for t in things}
    if len(names) == 1 and len(colours) == 1:
        return f"{number} {first.colour} {plural(first.name)}"
    if len(names) == 1:
        return f"{number} {plural(first.name)}: {listing([t.colour for t in things])}"
    return listing([a(name_of(t)) for t in things])
