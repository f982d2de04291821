"""Checks grammars with llguidance, without a model's vocabulary. Its panics are raised as ValueError."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from spyglass_server.constraints.multiples import multiples_fault
from spyglass_server.engine.structured_output import GRAMMAR_LIMITS
from spyglass_server.panics import panics_as_errors

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LIMITS = LLParserLimits(**GRAMMAR_LIMITS)
JSON_FORM: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
"""JSON as models write it on one line, as free white space would let an answer continue for ever. Everything in a
schema is enforced."""
NO_ANSWER = "no answer satisfies it"
_NOTHING = "NoExtensionBias"
"""The library's error when no text matches a grammar."""
_REGEX_ERROR = re.compile(r"regex parse error:.*?\nerror: ([^\n]*)", re.DOTALL)
_LOCATION = re.compile(r"^(at )?\d+\(\d+\): ")


@panics_as_errors()
def schema_grammar(schema: dict[str, Any]) -> str:
    """Returns the grammar of a schema, unchecked."""
    return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_FORM)


@panics_as_errors()
def syntax_fault(grammar: str) -> str:
    """Returns why the library refuses a grammar; empty if it accepts it."""
    return LLMatcher.validate_grammar(grammar, limits=_LIMITS)


@panics_as_errors()
def fault(grammar: str) -> str:
    """Returns why answers cannot follow a grammar; empty if they can at least begin to."""
    if reason := syntax_fault(grammar) or next(filter(None, map(multiples_fault, _texts(grammar))), ""):
        return reason
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=_LIMITS)
    matcher.compute_bitmask()
    found = matcher.get_error()
    return NO_ANSWER if found.startswith(_NOTHING) else found


def _texts(grammar: str) -> Iterator[str]:
    """The parts of a grammar, in which schemas are plain JSON."""
    if not grammar.startswith("{"):  # Lark
        yield grammar
        return
    for part in json.loads(grammar)["grammars"]:
        yield part["lark_grammar"] or json.dumps(part["json_schema"])


def without_text(reason: str) -> str:
    """Returns a library error without its location and quoted text, as neither need be from the caller's source."""
    if found := _REGEX_ERROR.search(reason):
        return found[1]
    return _LOCATION.sub("", reason.partition("\n")[0])


def one_line(reason: str) -> str:
    """Returns a reason without line breaks; other white space stays, as it may be quoted."""
    return re.sub(r"\s*\n\s*", " ", reason.strip())


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")
