"""Calls of tools: however an answer is cut, the same calls are found, and what is not a call is text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import strategies as st

from fuzz.target import property_target
from spyglass_server.prompt.tool_calls import ToolParser

_NAMES = ("f", "g", "brave_search", "get_weather")
_FRAGMENTS = (
    *(
        '{"name": "f", "parameters": {',
        '{"a": "b"}',
        '{"name": "g"}',
        '"arguments": ',
        '"name": ',
        '"type": "function"',
    ),
    *(
        "<function=f>",
        "</function>",
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "[f(",
        "g()",
        'brave_search.call(query="',
    ),
    *(
        "a='",
        'b="',
        "}}",
        ")]",
        "; ",
        "\\",
        '\\"',
        "\\u00",
        "\\ud800",
        "ｆ(",
        "f(**",
        "a=1, a=2",
        "1e999",
        "9" * 5000,
        "b'x'",
    ),
    *("None", "-1.5", "(1,)", "{1}", "lambda: 0", "#", "'''", "\x00", "\r", "\x0c", "\u2028", "\ufeff", "é", "😀", "_"),
    *"{}[]()<>\"'\\:;,= \n\tfgab1",
)


@dataclass(frozen=True)
class _Answer:
    """An answer in pieces; the token after which calls follow stands before some of them."""

    pieces: tuple[str, ...]
    tags: frozenset[int]
    is_constrained: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)


_answers = st.builds(
    _Answer,
    st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=6), max_size=25).map(tuple),
    st.frozensets(st.integers(0, 8), max_size=2),
    st.booleans(),
)


def _parse(pieces: Sequence[str], tags: frozenset[int], is_constrained: bool) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser(_NAMES, is_constrained)
    text: list[str] = []
    calls: list[tuple[str, str]] = []
    for number, piece in enumerate(pieces):
        if number in tags:
            parser.see_tag()
        said, more = parser.push(piece)
        text.append(said)
        for call in more:
            if call.id:
                assert call.call == len(calls)
                assert call.name in _NAMES
                calls.append((call.name, ""))
            name, arguments = calls[call.call]
            calls[call.call] = name, arguments + call.arguments
    text.append(parser.finish())
    assert parser.has_called == bool(calls)
    return "".join(text), calls


def _letters(answer: _Answer) -> tuple[list[str], frozenset[int]]:
    """The same answer, letter by letter."""
    # A token without a text may stand between letters, so a piece that is empty remains one.
    letters: list[str] = []
    tags: set[int] = set()
    for number, piece in enumerate(answer.pieces):
        if number in answer.tags:
            tags.add(len(letters))
        letters += list(piece) or [""]
    return letters, frozenset(tags)


def _check(answer: _Answer) -> str:
    text, calls = _parse(answer.pieces, answer.tags, answer.is_constrained)
    letters, tags = _letters(answer)
    assert _parse(letters, tags, answer.is_constrained) == (text, calls), "it depends on where the answer is cut"
    if not answer.tags.intersection(range(len(answer.pieces))):
        assert _parse([answer.text], frozenset(), answer.is_constrained) == (text, calls)
        if not answer.is_constrained:
            _check_nothing_is_lost(answer.text, text, calls)
    return f"{min(len(calls), 3)} calls, {'with' if text.strip() else 'no'} text"


def _check_nothing_is_lost(answer: str, text: str, calls: list[tuple[str, str]]) -> None:
    """Calls come first, and then text: all of an answer without calls, or its end."""
    assert answer.endswith(text)
    if not calls:
        assert text == answer
        return
    before = answer[: len(answer) - len(text)]
    assert _parse([before], frozenset(), is_constrained=False) == ("", calls)


@contextmanager
def _opened() -> Iterator[Callable[[_Answer], str]]:
    yield _check


TOOL_CALLS = property_target("tool_calls", _answers, _opened, batch_size=1000, smoke_size=300)
