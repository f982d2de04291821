"""Converts text to token ids, and token ids to bytes. Control tokens are encoded only if the caller asks for it."""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders


class TextTokenizer:
    """A byte-level BPE tokenizer, as used by all models of this family."""

    def __init__(self, path: Path) -> None:
        """Reads a tokenizer.json.

        Raises:
            ValueError: it is missing, damaged, or not byte-level.
        """
        try:
            definition = path.read_text("utf-8")
            self._tokenizer = Tokenizer.from_str(definition)
            self._plain = Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise ValueError(f"{path} is not a byte-level tokenizer")
        self._plain.encode_special_tokens = True
        added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        self._written = {token_id: content.encode() for content, token_id in self._special.items()}
        self._pattern = _any_of(self._special)
        self._bytes = _token_bytes(self._tokenizer, added)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens and their ids."""
        return dict(self._special)

    def encode_text(self, text: str) -> list[int]:
        """Encodes plain text; a control token's string in it is just text."""
        return _encode(self._plain, text)

    def encode_prompt(self, text: str) -> list[int]:
        """Encodes a ready prompt: parses control tokens, and prepends the begin token if it is missing."""
        ids = _encode(self._tokenizer, text)
        prefix = self._tokenizer.encode("", add_special_tokens=True).ids
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def split_control(self, text: str) -> list[tuple[str, int | None]]:
        """Splits text at control tokens: pieces of plain text with None, control tokens with their id."""
        if self._pattern is None:
            return [(text, None)]
        pieces = self._pattern.split(text)  # the pattern captures, so every other piece is a control token
        return [(piece, self._special[piece] if i % 2 else None) for i, piece in enumerate(pieces) if piece]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in an answer; none for a control token or an unknown id."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def written(self, token_id: int) -> bytes:
        """The bytes that a token of a prompt stands for; a control token is written out."""
        return self._written.get(token_id) or self.token_bytes(token_id)

    def written_text(self, token_ids: Iterable[int]) -> str:
        """The text of a prompt's tokens; bytes that form no whole character become replacement characters."""
        return b"".join(map(self.written, token_ids)).decode("utf-8", "replace")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # As a batch of one: only the batch method lets other threads run meanwhile.
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _any_of(strings: dict[str, int]) -> re.Pattern[str] | None:
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if strings else None


def _token_bytes(tokenizer: Tokenizer, added: dict[int, AddedToken]) -> list[bytes]:
    to_byte = _byte_of_character()
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
    table = [b""] * (1 + max([*vocabulary.values(), *added]))
    for token, token_id in vocabulary.items():
        table[token_id] = bytes(to_byte[c] for c in token if c in to_byte)
    for token_id, added_token in added.items():
        table[token_id] = b"" if added_token.special else added_token.content.encode()
    return table


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable characters stand for themselves, the rest from U+0100 on.

    Source: bytes_to_unicode in OpenAI's gpt-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
