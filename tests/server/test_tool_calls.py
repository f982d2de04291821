"""Calls are found in every shape that models write, wherever the text is cut, and nothing else is one."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyglass_server.prompt.tool_calls import ToolParser

NAMES = ("f", "g", "brave_search", "get_weather")
PARIS = {"city": "Paris", "n": 2, "deep": {"a": [1, "}", '"', "ü"]}}
P = json.dumps(PARIS)

Found = tuple[str, list[tuple[str, str]]]


def parse(pieces: list[str], tag_before: int | None = None) -> Found:
    """Text and calls (name, arguments) of an answer that comes in pieces; the tag stands before one of them."""
    parser = ToolParser(NAMES)
    text: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    ids: list[str] = []
    for number, piece in enumerate(pieces):
        if number == tag_before:
            parser.see_tag()
        said, more = parser.push(piece)
        text.append(said)
        for call in more:
            if call.id:
                assert call.call == len(calls)
                ids.append(call.id)
                calls.append((call.name, []))
            calls[call.call][1].append(call.arguments)
    text.append(parser.finish())
    assert len(set(ids)) == len(calls)
    assert parser.has_called == bool(calls)
    return "".join(text), [(name, "".join(arguments)) for name, arguments in calls]


_CALLS = {
    '{"name": "f", "parameters": @}': [("f", PARIS)],
    ' \n{"type": "function", "name": "f", "parameters": @}\n': [("f", PARIS)],
    '{"type":"function","name":"f","arguments":@}': [("f", PARIS)],
    '{"parameters": @, "name": "f"}': [("f", PARIS)],
    '{"name": "f", "parameters": @, "id": [1, {"x": "}"}]}': [("f", PARIS)],
    '{"name": "g"}': [("g", {})],
    '{"id": 12, "name": "g", "parameters": {}}': [("g", {})],
    '{"name": "f", "parameters": @}; {"name": "g", "parameters": {}}': [("f", PARIS), ("g", {})],
    '{"name": "f", "parameters": @}\n{"name": "g", "parameters": {}}': [("f", PARIS), ("g", {})],
    '[{"name": "f", "parameters": @}, {"name": "g", "parameters": {}}]': [("f", PARIS), ("g", {})],
    '<tool_call>[{"name": "f", "arguments": @}]</tool_call>': [("f", PARIS)],
    "<function=f>@</function>": [("f", PARIS)],
    "<function=f>@</function>\n<function=g>{}</function>": [("f", PARIS), ("g", {})],
    "[f(city='Paris', n=2, deep={'a': [1, '}', '\"', 'ü']}), g()]": [("f", PARIS), ("g", {})],
    '[get_weather(city="a]b", on=True, no=None, x=-1.5)]': [
        ("get_weather", {"city": "a]b", "on": True, "no": None, "x": -1.5})
    ],
    r'[f(a="say \"]\" twice")]': [("f", {"a": 'say "]" twice'})],
}
CALLS = {answer.replace("@", P): calls for answer, calls in _CALLS.items()}
TEXTS = [
    "",
    "Hello!",
    " \n two lines\n",
    "{",
    "{}",
    "[",
    "[]",
    "[1, 2]",
    "<",
    "<b>bold</b>",
    '{"name": "unknown", "parameters": {}}',
    '{"name": 1}',
    '{"name": "f", "parameters": "x"}',
    '{"city": "Paris"}',
    '{"parameters": {}}',
    "{'name': 'f'}",
    '{"name" "f"}',
    "[unknown(a=1)]",
    "[f(1)]",
    "[f(**x)]",
    "[f(a=b)]",
    "[f(a=1), 2]",
    "[f(a={1, 2})]",
    "[f(a)b]",
    r'[f(a="\ud800")]',
    "[f.other(a=1)]",
    "<function=unknown>{}</function>",
    "<function=f>[]</function>",
    'brave_search.call(query="x")',
    'Sure: {"name": "f", "parameters": {}}',
    "[" * 1000,
    '{"name": ' + "[" * 1000,
]


def as_objects(found: Found) -> list[tuple[str, object]]:
    return [(name, json.loads(arguments)) for name, arguments in found[1]]


@pytest.mark.parametrize("answer", CALLS)
def test_calls_are_found_wherever_the_answer_is_cut(answer: str) -> None:
    whole = parse([answer])
    assert (whole[0], as_objects(whole)) == ("", CALLS[answer])
    assert parse(list(answer)) == whole
    for cut in range(len(answer)):
        assert parse([answer[:cut], answer[cut:]]) == whole


@pytest.mark.parametrize("answer", TEXTS)
def test_everything_else_is_text_and_complete(answer: str) -> None:
    assert parse([answer]) == parse(list(answer)) == (answer, [])


@given(
    st.lists(
        st.sampled_from([*"{}[]()<>\"'\\:;,= \n", "name", "f", '"name"', '"parameters"', "<function=f>", "1", "ü"])
    )
)
def test_no_answer_is_lost_or_depends_on_its_pieces(words: list[str]) -> None:
    answer = "".join(words)
    whole = parse([answer])
    assert parse(words) == parse(list(answer)) == whole
    if not whole[1]:
        assert whole[0] == answer


@given(st.text(), st.integers(0, 10))
def test_text_is_given_back(text: str, cut: int) -> None:
    found, calls = parse([text[:cut], text[cut:]])
    assert calls == []
    assert found == text


def test_arguments_grow_while_they_are_written() -> None:
    parser = ToolParser(NAMES)
    parts = ['{"name": "f", "parameters": {"a": "on', "ce upon", ' a time"', "}}"]
    found = [parser.push(part)[1] for part in parts]
    assert [(call.name, call.arguments) for call in found[0]] == [("f", '{"a": "on')]
    assert ["".join(call.arguments for call in more) for more in found[1:]] == ["ce upon", ' a time"', "}"]


def test_calls_after_the_tag() -> None:
    search = 'brave_search.call(query="who is \\"x\\"?")'
    for pieces in ([search], list(search)):
        assert parse(pieces, tag_before=0) == ("", [("brave_search", '{"query": "who is \\"x\\"?"}')])
    assert parse(["Let me look. ", search], tag_before=1)[0] == "Let me look. "
    assert parse(["Let me look. ", '{"name": "g"}'], tag_before=1) == ("Let me look. ", [("g", "{}")])
    assert parse(["print(1)"], tag_before=0) == ("print(1)", [])


def test_text_after_calls_is_text() -> None:
    assert parse(['{"name": "g"} and that is it']) == (" and that is it", [("g", "{}")])


def test_what_is_cut_off_in_a_call_stays_a_call_and_before_it_text() -> None:
    assert parse(['{"name": "f", "parameters": {"a": 1']) == ("", [("f", '{"a": 1')])
    assert parse(['{"name": "f", "para']) == ('{"name": "f", "para', [])


@pytest.mark.parametrize("answer", CALLS)
def test_under_a_grammar_a_call_that_is_cut_off_is_never_text(answer: str) -> None:
    for cut in range(len(answer)):
        parser = ToolParser(NAMES, is_constrained=True)
        text = parser.push(answer[:cut])[0] + parser.finish()
        assert not text.strip()
    parser = ToolParser(NAMES, is_constrained=True)
    assert parser.push(" \n ")[0] + parser.finish() == " \n "
    parser = ToolParser(NAMES, is_constrained=True)
    assert parser.push(" Hello {")[0] + parser.finish() == " Hello {"


UNITS = ["{", "[", "<", '{"name": ', '{"name": "f", "parameters": {"a": ', "[f(", "[f(a='", '"', "\\", "<function=f>{"]


@pytest.mark.parametrize("unit", UNITS)
def test_ten_times_the_answer_takes_ten_times_the_work_and_not_a_hundred(unit: str) -> None:
    def seconds(count: int) -> float:
        began = time.process_time()
        parse([unit] * count)
        return time.process_time() - began

    seconds(1000)
    assert seconds(40_000) < 40 * seconds(4_000) + 1
