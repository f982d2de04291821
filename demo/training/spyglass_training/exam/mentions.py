"""Finds in free text what it says of the world: colours, shapes, sides, numbers, and objects.

Owns the synonyms and how words belong together. Knows nothing of questions or of what is right.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType

from spyglass_training.world import COLOURS, SHAPES, SIDES

_SHAPES = MappingProxyType(
    {shape: shape for shape in SHAPES}
    | {f"{shape}s": shape for shape in SHAPES}
    | {"crosses": "cross", "plus": "cross", "pluses": "cross"}
    | {"ellipse": "oval", "ellipses": "oval", "rhombus": "diamond", "rhombuses": "diamond"}
    | {"circular": "circle", "triangular": "triangle", "rectangular": "rectangle"}
)
_COLOURS = MappingProxyType({colour: colour for colour in COLOURS} | {"gray": "grey"})
_SIDES = MappingProxyType(
    {side: side for side in SIDES}
    | dict.fromkeys(("over", "top", "higher"), "above")
    | dict.fromkeys(("under", "underneath", "beneath", "bottom", "lower"), "below")
)
_NUMBERS = MappingProxyType(
    {
        word: str(number)
        for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    }
    | {"ten": "10", "single": "1"}
)
_GROUNDS = frozenset({"ground", "background", "backdrop"})
_DENIALS = frozenset({"not", "isnt", "arent", "cannot", "cant", "dont", "doesnt", "neither", "nor"})
_BETWEEN = frozenset(
    {
        *("and", "or", "big", "large", "small", "little", "tiny", "thick", "thin", "bright", "dark", "light", "pale"),
        *("deep", "solid", "plain", "filled", "hollow", "outlined", "shaded", "graded"),
    }
)
"""Words that may stand between a colour and the thing it belongs to."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing as a text names it: "red circle", only "red", or only "circle". The noun may be "ground"."""

    colour: str | None
    noun: str | None

    @property
    def traits(self) -> frozenset[str]:
        return frozenset(trait for trait in (self.colour, self.noun) if trait)

    def contradicts(self, other: "Mention") -> bool:
        """Whether both cannot be about one thing."""
        pairs = ((self.colour, other.colour), (self.noun, other.noun))
        return any(mine and theirs and mine != theirs for mine, theirs in pairs)


def words_in(text: str) -> list[str]:
    """The words and the figures, in lower case and without punctuation. `isn't` is `isnt`."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"['’]", "", text.lower()))


def is_denial(text: str) -> bool:
    return not _DENIALS.isdisjoint(words_in(text))


def colours_in(text: str) -> frozenset[str]:
    return frozenset(_COLOURS[word] for word in words_in(text) if word in _COLOURS)


def shapes_in(text: str) -> frozenset[str]:
    return frozenset(_SHAPES[word] for word in words_in(text) if word in _SHAPES)


def sides_in(text: str) -> frozenset[str]:
    return frozenset(_SIDES[word] for word in words_in(text) if word in _SIDES)


def numbers_in(text: str) -> frozenset[str]:
    """The numbers in figures, also those that are written as words up to ten."""
    return frozenset(_NUMBERS.get(word, word) for word in words_in(text) if word in _NUMBERS or word.isdecimal())


def mentions_in(text: str) -> list[Mention]:
    """The things that a text names, in its order.

    A colour belongs to the shape or ground after it: "a red circle", "red and blue circles", "a light
    blue background". In "the circle is red" both stand alone.
    """
    return [mention for sentence in re.split(r"[.:;!?\n]", text) for mention in _mentions_in_sentence(sentence)]


def _mentions_in_sentence(text: str) -> list[Mention]:
    mentions: list[Mention] = []
    colours: list[str] = []
    for word in words_in(text):
        noun = "ground" if word in _GROUNDS else _SHAPES.get(word)
        if word in _COLOURS:
            colours.append(_COLOURS[word])
        elif noun:
            mentions += [Mention(colour, noun) for colour in colours]
            if not colours and noun != "ground":
                mentions.append(Mention(None, noun))
            colours.clear()
        elif word not in _BETWEEN:
            mentions += [Mention(colour, None) for colour in colours]
            colours.clear()
    return mentions + [Mention(colour, None) for colour in colours]


def subject_of(text: str) -> Mention | None:
    """The thing that stands before the first side: the circle in "the circle is left of the star"."""
    words = words_in(text)
    first = next((place for place, word in enumerate(words) if word in _SIDES), 0)
    before = mentions_in(" ".join(words[:first]))
    return before[0] if before else None
