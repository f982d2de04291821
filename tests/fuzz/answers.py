"""Text of answers: whatever the tokens, the pieces make up the whole, and nothing from a stop string on is told."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from checkpoints import SPECIAL_TOKENS, finish_tokenizer
from fuzz.target import property_target
from spyglass_server.choices import Choices
from spyglass_server.engine.messages import FinishReason, TokenOutput
from spyglass_server.prompt.detokenizer import Detokenizer
from spyglass_server.prompt.tokenizer import TextTokenizer

_WORDS = ("the", " a", "stop", "sto", "op", "\n\n", "é", "😀😀", "日本", "\r\n", "\u2028", "a\u0301", "\x00", "0" * 300)
_HALVES = (
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xe6\x97",
    b"\xa5a",
    b"\xc3",
    b"\xa9\xc3",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\x80" * 5,
)
_NUM_TOKENS = 256 + len(_WORDS) + len(_HALVES) + len(SPECIAL_TOKENS)


@dataclass(frozen=True)
class _Case:
    """Answers of one generation, each token with the choice that it is of, and the stop strings."""

    tokens: tuple[tuple[int, int], ...]
    stops: tuple[str, ...]
    finish: FinishReason


_tokens = st.integers(0, _NUM_TOKENS + 3) | st.integers(256, _NUM_TOKENS)
_stops = st.text(st.sampled_from("stop a\né日本😀\u0301\ufffd\x00"), min_size=1, max_size=4) | st.text(
    min_size=1, max_size=3
)
_cases = st.builds(
    _Case,
    st.lists(st.tuples(st.integers(0, 1), _tokens), max_size=40).map(tuple),
    st.lists(_stops, max_size=4).map(tuple),
    st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)


def _tokenizer(path: Path) -> TextTokenizer:
    """A token for each byte, then tokens of several characters, and such that split characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    for token in (*(word.encode() for word in _WORDS), *_HALVES):
        vocabulary["".join(map(_symbol, token))] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    finish_tokenizer(tokenizer, SPECIAL_TOKENS)
    tokenizer.save(str(path))
    return TextTokenizer(path)


def _symbol(byte: int) -> str:
    """What stands for a byte in the alphabet of byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [one for one in range(256) if one not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


@contextmanager
def _opened() -> Iterator[Callable[[_Case], str]]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(Path(folder) / "tokenizer.json")

        def check(case: _Case) -> str:
            outcomes = {_check(tokenizer, case, choice) for choice in (0, 1)}
            return " and ".join(sorted(outcomes))

        yield check


def _check(tokenizer: TextTokenizer, case: _Case, choice: int) -> str:
    """What is told of a choice, while the tokens of another come in between."""
    choices = Choices([Detokenizer(tokenizer), Detokenizer(tokenizer)], case.stops)
    mine = [token for index, token in case.tokens if index == choice]
    told: list[str] = []
    met = finish = None
    left = len(mine)
    for index, token in case.tokens:
        left -= index == choice
        ends = case.finish if index == choice and left == 0 else None
        parts = choices.push(TokenOutput(0, index, token, ends))
        if index != choice:
            continue
        if finish is not None:
            assert parts is None, "there is more after the end"
            continue
        assert parts is not None
        told.append(parts.text)
        met, finish = parts.stop_string, parts.finish
    text = "".join(told)
    written = mine[:-1] if case.finish is FinishReason.STOP else mine
    whole = b"".join(map(tokenizer.token_bytes, written)).decode("utf-8", "replace")
    assert not any(stop in text for stop in case.stops)
    places = [(at, -len(stop), stop) for stop in case.stops if (at := whole.find(stop)) >= 0]
    if not places:
        assert (text, met) == (whole, None)
        return "goes to its end" if mine else "is empty"
    assert finish is FinishReason.STOP
    assert met is not None
    assert whole.startswith(text + met), "what is told is not what stands before the stop string"
    return "meets a stop string"


ANSWERS = property_target("answers", _cases, _opened, batch_size=3000, smoke_size=300)
