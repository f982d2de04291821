"""The exam: what is asked about a picture, and which free-text answers are right.

Owns the kinds of questions with their bars, and the judge. Knows nothing of how pictures are drawn,
nor of who answers.
"""

from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image

from spyglass_training.exam.mentions import (
    Mention,
    colours_in,
    is_denial,
    mentions_in,
    numbers_in,
    shapes_in,
    sides_in,
    subject_of,
    words_in,
)
from spyglass_training.world import COLOURS, COUNTS, SHAPES, SIDES, WORDS

KINDS = (
    "colour", "shape", "count", "digit", "pick colour", "pick shape", "relation", "number", "word", "describe",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """What a kind of question should reach, in percent: a bar when `required`, an aim otherwise."""

    percent: int
    required: bool

    def __str__(self) -> str:
        return f">= {self.percent}" if self.required else f"aim {self.percent}"


BARS = MappingProxyType(
    {
        "colour": Bar(95, required=True),
        "shape": Bar(95, required=True),
        "count": Bar(90, required=True),
        "digit": Bar(90, required=True),
        "pick colour": Bar(85, required=False),
        "pick shape": Bar(85, required=False),
        "relation": Bar(80, required=False),
    }
)
"""The kinds that are not in here come as well as they come."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, a question about it, and what a right answer says.

    `expected`, in the world's vocabulary, by kind:

    - colour, pick colour: the colour, `{"red"}`; shape, pick shape: the shape, `{"star"}`
    - count: `{"three"}`; digit, number: `{"7"}`, `{"42"}`; word: `{"stop"}`, in lower case
    - relation: the side, `{"left"}`, of the object that the question names first; or, when the question
      asks what lies there, the object, `{"red circle"}`
    - describe: each object, `"red circle"`, or for text its colour and what it says, `"red 42"`; each
      colour that may be given for the ground, `"white ground"`; and, where several objects look alike,
      how many objects there are, `"three"`
    """

    kind: str
    picture: Image.Image
    question: str
    expected: frozenset[str]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an exam has no kind {self.kind!r}")
        if not self.expected:
            raise ValueError("an answer has to be expected")
        if self.kind in {"relation", "describe"}:
            for text in self.expected - {*SIDES, *COUNTS}:
                colour, _, noun = text.partition(" ")
                if colour not in COLOURS or not noun:
                    raise ValueError(f"an object is a colour and a noun, which {text!r} is not")


def accepts(answer: str, example: Example) -> bool:
    """Whether a person who is strict but fair would call the answer right. Case and punctuation do not count."""
    if is_denial(answer):  # "not red" mentions red
        return False
    expected = example.expected
    match example.kind:
        case "colour" | "pick colour":
            return colours_in(answer) == expected
        case "shape" | "pick shape":
            return shapes_in(answer) == expected
        case "count":
            return numbers_in(answer) == numbers_in(" ".join(expected))
        case "digit" | "number":
            return _numerals(answer) == expected
        case "word":
            return _reads(answer, expected)
        case "relation" if expected <= set(SIDES):
            return _takes_side(answer, example)
        case "relation":
            return _names_other(answer, example)
        case _:
            return _describes(answer, expected)


def _numerals(answer: str) -> frozenset[str]:
    """What the answer reads. Beside figures a number in letters is about something else: "one digit, a 7"."""
    figures = frozenset(word for word in words_in(answer) if word.isdecimal())
    return figures or numbers_in(answer)


def _reads(answer: str, expected: frozenset[str]) -> bool:
    """Whether it has the word, and is no list of guesses. "Red", "star" or "left" may tell of how the word looks."""
    said = set(words_in(answer))
    elsewhere = {*COLOURS, *SHAPES, *SIDES}
    return expected <= said and not (said & set(WORDS)) - elsewhere - expected


def _takes_side(answer: str, example: Example) -> bool:
    sides = sides_in(answer)
    asked = mentions_in(example.question)
    subject = subject_of(answer)
    if len(asked) >= 2 and subject and _is_about(subject, asked[1]) and not _is_about(subject, asked[0]):
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        return {opposite[side] for side in sides} == example.expected  # "The square is right of the circle"
    return sides == example.expected


def _is_about(mention: Mention, thing: Mention) -> bool:
    """Whether the mention fits the thing, and has something of it."""
    return bool(mention.traits & thing.traits) and not mention.contradicts(thing)


def _names_other(answer: str, example: Example) -> bool:
    """Whether the other object is named, and besides only the one that the question names."""
    others = [_thing(text) for text in example.expected]
    asked = mentions_in(example.question)
    known = frozenset().union(*(mention.traits for mention in asked))
    said = mentions_in(answer)
    is_named = any(mention.traits <= other.traits and mention.traits - known for mention in said for other in others)
    return is_named and all(
        any(mention.traits <= other.traits for other in others)
        or any(not mention.contradicts(thing) for thing in asked)
        for mention in said
    )


def _thing(text: str) -> Mention:
    colour, _, noun = text.partition(" ")
    return Mention(colour, noun)


def _describes(answer: str, expected: frozenset[str]) -> bool:
    count = [text for text in expected if text in COUNTS]
    parts = [_thing(text) for text in expected if text not in COUNTS]
    things = [part for part in parts if part.noun != "ground"]
    said = frozenset(mentions_in(answer))
    words = {*words_in(answer), *numbers_in(answer)}
    if not all(_is_described(thing, said, words) for thing in things):
        return False
    if not all(_is_there(mention, parts) for mention in said):
        return False
    numbers = numbers_in(answer) - {thing.noun or "" for thing in things}
    if count:  # of things of which some are alike: it is said, or all are named
        named = {str(sum(mention.noun not in (None, "ground") for mention in mentions_in(answer)))}
        return (numbers or named) == numbers_in(count[0])
    return all(int(number) <= len(things) for number in numbers)


def _is_described(thing: Mention, said: frozenset[Mention], words: set[str]) -> bool:
    if thing.noun in SHAPES and thing in said:
        return True
    has_colour = Mention(thing.colour, None) in said
    if thing.noun in SHAPES and Mention(None, thing.noun) in said:
        return has_colour  # "The circle is red"
    return thing.noun in words and (has_colour or thing.colour == thing.noun)


def _is_there(mention: Mention, parts: list[Mention]) -> bool:
    """Whether something in the picture fits the mention. Written words may be colours or shapes themselves."""
    texts = {part.noun for part in parts}
    if mention.noun is None:
        return mention.colour in texts or any(part.colour == mention.colour for part in parts)
    if mention.colour is None:
        return mention.noun in texts
    return mention in parts
