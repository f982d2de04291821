"""Answers of a grammar, byte by byte, without a model."""

import json
from random import Random
from typing import Any

import jsonschema
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint, to_grammar

BYTES = LLTokenizer("byte")
_ENDING = b'"]}'


def lets_through(grammar: str, text: str) -> bool:
    """Whether a text is a whole answer of a grammar."""
    matcher = LLMatcher(BYTES, grammar)
    tokens = BYTES.tokenize_bytes(text.encode())
    return bool(
        matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


def random_answer(grammar: str, random: Random, max_bytes: int = 1000) -> str | None:
    """An answer of a grammar, or None if it does not end or becomes too costly, which ends it with an error.

    Bytes beyond ASCII are chosen only if no other is allowed.
    """
    matcher = LLMatcher(BYTES, grammar)
    answer = bytearray()
    while len(answer) < max_bytes and not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_accepting() and (not allowed or random.random() < 0.5):
            return answer.decode()
        if not allowed:
            assert "TooComplex" in matcher.get_error(), f"{bytes(answer)!r} leads nowhere"
            return None
        ending = [byte for byte in allowed if byte in _ENDING]
        ascii_bytes = [byte for byte in allowed if byte < 128]
        byte = random.choice(ending if ending and random.random() < 0.4 else ascii_bytes or allowed)
        assert matcher.consume_token(byte)
        answer.append(byte)
    return answer.decode() if matcher.is_accepting() else None


def schema_grammar(schema: Any) -> str:
    """The grammar of a JSON schema."""
    return to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))


def valid_answers(schema: Any, count: int = 20) -> list[Any]:
    """Random answers that a JSON schema's grammar lets through; each is valid against the schema, formats included."""
    random = Random(1)
    grammar = schema_grammar(schema)
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    found = [json.loads(text) for _ in range(count) if (text := random_answer(grammar, random)) is not None]
    for value in found:
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
    return found


class Allows:
    """A grammar that always allows the same tokens."""

    is_ready = True

    def __init__(self, *tokens: int) -> None:
        bits = np.isin(np.arange(40), tokens)  # more than there are logits
        self._bits = np.packbits(bits, bitorder="little").tobytes()

    def allowed(self) -> bytes:
        return self._bits

    def advance(self, token: int) -> None:
        raise AssertionError

    def forced(self) -> tuple[int, ...]:
        return ()

    def fork(self) -> "Allows":
        return self
