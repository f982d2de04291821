"""The judge says right where a person would, and wrong where a person would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spyglass_training.exam.judge import BARS, KINDS, Example, accepts
from spyglass_training.world import COLOURS, COUNTS, SHAPES, WORDS

SIDE_QUESTION = "Is the red circle to the left or right of the blue square?"
OBJECT_QUESTION = "What is left of the blue square?"
TWO = {"red circle", "blue square", "white ground", "grey ground"}


def ask(kind: str, *expected: str, question: str = "?") -> Example:
    return Example(kind, Image.new("RGB", (1, 1)), question, frozenset(expected))


@pytest.mark.parametrize("answer", ["red", "Red.", "RED!", "It is red.", "The square is red", "A red, red square"])
def test_a_colour_is_right_in_any_sentence(answer: str) -> None:
    assert accepts(answer, ask("colour", "red"))


@pytest.mark.parametrize("answer", ["", "blue", "red and blue", "reddish", "not red", "It isn't red", "violet"])
def test_no_other_colour_is_right(answer: str) -> None:
    assert not accepts(answer, ask("colour", "red"))


def test_violet_is_not_a_name_of_purple() -> None:
    assert not accepts("violet", ask("colour", "purple"))


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("colour", "Gray", "grey"),
        ("pick colour", "gray", "grey"),
        ("shape", "an ellipse", "oval"),
        ("shape", "A rhombus.", "diamond"),
        ("shape", "plus sign", "cross"),
        ("shape", "crosses", "cross"),
        ("pick shape", "It's a star-shaped thing", "star"),
    ],
)
def test_synonyms_are_right(kind: str, answer: str, expected: str) -> None:
    assert accepts(answer, ask(kind, expected))


@pytest.mark.parametrize("answer", ["circle", "oval or circle", "a shape", "an egg"])
def test_no_other_shape_is_right(answer: str) -> None:
    assert not accepts(answer, ask("shape", "oval"))


@pytest.mark.parametrize("answer", ["3", "three", "There are three stars.", "Three (3)."])
def test_a_count_may_be_a_figure_or_a_word(answer: str) -> None:
    assert accepts(answer, ask("count", "three"))


@pytest.mark.parametrize("answer", ["13", "four", "three or four", "stars", "30"])
def test_no_other_count_is_right(answer: str) -> None:
    assert not accepts(answer, ask("count", "three"))


@pytest.mark.parametrize("answer", ["7", "seven", "The digit is 7.", "It shows one digit, a 7"])
def test_a_digit_may_be_written_out(answer: str) -> None:
    assert accepts(answer, ask("digit", "7"))


@pytest.mark.parametrize("answer", ["77", "1 7", "one", "a digit", "17"])
def test_no_other_digit_is_right(answer: str) -> None:
    assert not accepts(answer, ask("digit", "7"))


def test_a_number_has_all_its_digits_in_order() -> None:
    assert accepts("The number 42.", ask("number", "42"))
    assert not any(accepts(answer, ask("number", "42")) for answer in ("24", "4 2", "421", "4", "42 or 24"))


@pytest.mark.parametrize("answer", ["stop", "STOP", 'It says "Stop".', "The red word is stop"])
def test_a_word_is_right_in_any_case(answer: str) -> None:
    assert accepts(answer, ask("word", "stop"))


@pytest.mark.parametrize("answer", ["stopped", "top", "s t o p", "cat dog stop", "go"])
def test_no_other_word_and_no_list_of_words_is_right(answer: str) -> None:
    assert not accepts(answer, ask("word", "stop"))


def test_a_word_that_is_a_colour_is_read_and_not_seen() -> None:
    assert accepts("The word red in blue letters", ask("word", "red"))
    assert not accepts("blue", ask("word", "red"))


@pytest.mark.parametrize(
    "answer",
    [
        "left",
        "Left.",
        "To the left of the blue square",
        "The red circle is left of the blue square.",
        "The square is to the right of the circle.",
        "The blue square is right of the red circle.",
    ],
)
def test_a_side_is_right_from_either_object(answer: str) -> None:
    assert accepts(answer, ask("relation", "left", question=SIDE_QUESTION))


@pytest.mark.parametrize(
    "answer", ["right", "left or right", "above", "The square is left of the circle.", "red", "The circle is right"]
)
def test_no_other_side_is_right(answer: str) -> None:
    assert not accepts(answer, ask("relation", "left", question=SIDE_QUESTION))


@pytest.mark.parametrize(("answer", "side"), [("It is over it", "above"), ("on top", "above"), ("under it", "below")])
def test_a_side_has_synonyms(answer: str, side: str) -> None:
    assert accepts(answer, ask("relation", side, question="Is the star above or below the heart?"))


@pytest.mark.parametrize(
    "answer",
    ["circle", "a red one", "The red circle.", "The circle is left of the square", "A red circle by a blue square"],
)
def test_the_other_object_is_named_by_colour_or_shape(answer: str) -> None:
    assert accepts(answer, ask("relation", "red circle", question=OBJECT_QUESTION))


@pytest.mark.parametrize(
    "answer", ["the blue square", "a red square", "a blue circle", "green", "a star", "a circle and a star", "left"]
)
def test_no_other_object_is_right(answer: str) -> None:
    assert not accepts(answer, ask("relation", "red circle", question=OBJECT_QUESTION))


@pytest.mark.parametrize(
    "answer",
    [
        "A red circle and a blue square.",
        "The picture shows two shapes: a blue square and a big red circle.",
        "The circle is red. Squares here are blue.",
        "A red circle and a blue square on a white background",
        "A red circle and a blue square on a light gray ground.",
        "The background is white, with a red circle above a blue square",
    ],
)
def test_a_description_names_every_object(answer: str) -> None:
    assert accepts(answer, ask("describe", *TWO))


@pytest.mark.parametrize(
    "answer",
    [
        "A red circle.",
        "A circle and a square.",
        "red and blue",
        "A blue circle and a red square.",
        "A red circle, a blue square and a star.",
        "A red circle and a blue square, and something green",
        "A red circle and a blue square on a black background",
        "Three shapes: a red circle and a blue square",
        "A red circle, a blue square and a white square.",
    ],
)
def test_a_description_misses_nothing_and_invents_nothing(answer: str) -> None:
    assert not accepts(answer, ask("describe", *TWO))


def test_of_things_that_are_alike_the_number_is_said_or_all_are_named() -> None:
    example = ask("describe", "red circle", "blue star", "three", "white ground")
    for answer in ("a red circle, a blue star and a red circle", "a red circle, a blue star and a red circle on white"):
        assert accepts(answer, example)
    assert not accepts("a red circle and a blue star", example)


def test_objects_that_look_alike_are_counted() -> None:
    example = ask("describe", "red circle", "three")
    assert accepts("Three red circles.", example)
    assert accepts("3 circles, all red", example)
    assert not accepts("Red circles.", example)
    assert not accepts("Two red circles.", example)


def test_a_colour_is_shared_by_the_objects_that_it_is_said_of() -> None:
    assert accepts("Red and blue circles", ask("describe", "red circle", "blue circle"))
    assert accepts("A circle and a star, both red", ask("describe", "red circle", "red star"))


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        ("red 7", "A red 7 on a white background", "A red 1"),
        ("red 42", "The number 42 in red", "The number 42"),
        ("red stop", "The word 'STOP' in red letters", "The word 'STOP' in blue letters"),
        ("blue red", "It says red, in blue", "It says blue"),
        ("green star", "The word STAR in green", "A green heart"),
    ],
)
def test_a_description_of_text_says_what_it_says(expected: str, right: str, wrong: str) -> None:
    example = ask("describe", expected, "white ground")
    assert accepts(right, example)
    assert not accepts(wrong, example)


@given(st.text(), st.sampled_from(KINDS))
def test_any_text_is_judged(answer: str, kind: str) -> None:
    expected = {"describe": "red circle", "relation": "red circle", "digit": "7", "number": "42"}.get(kind, "red")
    assert accepts(answer, ask(kind, expected)) in {True, False}


@given(st.sampled_from(COLOURS), st.sampled_from(SHAPES), st.sampled_from(["{}", "{}!", "It is {}.", "  {}\n"]))
def test_what_is_expected_is_accepted(colour: str, shape: str, sentence: str) -> None:
    assert accepts(sentence.format(colour), ask("colour", colour))
    assert accepts(sentence.format(shape.upper()), ask("shape", shape))
    assert accepts(sentence.format(f"a {colour} {shape}"), ask("describe", f"{colour} {shape}"))


@given(st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_a_word_is_only_itself(said: str, written: str) -> None:
    assert accepts(said.capitalize(), ask("word", written)) == (said == written)


@given(st.sampled_from(COUNTS), st.integers(0, 10))
def test_a_count_is_only_itself(count: str, said: int) -> None:
    assert accepts(str(said), ask("count", count)) == (COUNTS.index(count) + 1 == said)


def test_an_example_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="no kind"):
        ask("smell", "sweet")
    with pytest.raises(ValueError, match="expected"):
        ask("colour")
    with pytest.raises(ValueError, match="a colour and a noun"):
        ask("describe", "circle")


def test_the_bars_belong_to_kinds() -> None:
    assert set(BARS) < set(KINDS)
    assert [str(BARS[kind]) for kind in ("colour", "relation")] == [">= 95", "aim 80"]
