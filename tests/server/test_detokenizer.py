"""Text comes out whole, in pieces that never have to be taken back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from spyglass_server.prompt.detokenizer import Detokenizer, StopStrings
from spyglass_server.prompt.tokenizer import TextTokenizer

texts = st.text(st.sampled_from("abcn. é€😀👩🏽‍🚀\u0301\n"), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer(tiny_checkpoint / "tokenizer.json")


def pieces(detokenizer: Detokenizer, tokens: list[int]) -> list[str]:
    return [*map(detokenizer.push, tokens), detokenizer.flush()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_pieces_make_up_the_text_and_split_no_character(tokenizer: TextTokenizer, text: str) -> None:
    given_out = pieces(Detokenizer(tokenizer), tokenizer.encode_text(text))
    assert "".join(given_out) == text
    assert not any("\ufffd" in piece for piece in given_out)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 263), max_size=30))
def test_any_tokens_read_as_the_tokenizer_reads_them(
    tokenizer: TextTokenizer, tiny_checkpoint: Path, tokens: list[int]
) -> None:
    whole = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json")).decode(tokens, skip_special_tokens=True)
    assert "".join(pieces(Detokenizer(tokenizer), tokens)) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, st.lists(st.text(st.sampled_from("abc."), min_size=1, max_size=4), min_size=1, max_size=4))
def test_text_ends_before_the_first_stop_string(tokenizer: TextTokenizer, text: str, stops: list[str]) -> None:
    stop = StopStrings(stops)
    given_out = "".join(map(stop.push, pieces(Detokenizer(tokenizer), tokenizer.encode_text(text)))) + stop.flush()
    assert not any(string in given_out for string in stops)
    if stop.met is None:
        assert given_out == text
    else:
        assert text.startswith(given_out + stop.met)


def test_a_beginning_of_a_stop_string_is_held_back_until_it_is_clear() -> None:
    stop = StopStrings(["abc"])
    given_out = [stop.push(character) for character in "xababd"]
    assert given_out == ["x", "", "", "ab", "", "abd"]
