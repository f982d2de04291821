"""The phrases that questions and answers are made of.

Owns what a question is, and words for things, places and numbers. Knows nothing of what is asked.
"""

from dataclasses import dataclass
from random import Random

from spyglass_training.drawing.scenes import Thing

TO_THE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OF = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


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


def question(about: str, rng: Random, wordings: tuple[str, ...], answer: str, key: str = "", **names: str) -> Question:
    """A question in one of the wordings, which have places for `names`, for {colour} and for {picture}."""
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


def a(words: str) -> str:
    """The words with their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    return words[0].upper() + words[1:] + "."


def name_of(thing: Thing) -> str:
    return f"{thing.colour} {thing.name}"


def called(thing: Thing, rng: Random) -> str:
    """What a question calls the thing: often without its colour."""
    return thing.name if rng.random() < 0.65 else name_of(thing)


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def listing(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
