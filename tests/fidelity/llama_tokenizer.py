"""Llama 3's tokenizer in the form in which checkpoints are published, made from Meta's tokenizer.model.

Owns the conversion from tiktoken's ranks to merges, and the published control tokens. Knows nothing of
templates.
"""

import base64
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from checkpoints import IMAGE_TOKEN, finish_tokenizer

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_NUM_CONTROL = 256  # without the image token


def llama_tokenizer(path: Path) -> Tokenizer:
    """Reads Meta's tokenizer.model: 128000 tokens, then control tokens, `<|image|>` as 128256."""
    ranks = _read_ranks(path)
    characters = _byte_characters()
    vocabulary = {_spell(token, characters): rank for token, rank in ranks.items()}
    merges = [
        (_spell(left, characters), _spell(right, characters))
        for token in ranks
        for left, right in sorted(
            ((token[:cut], token[cut:]) for cut in range(1, len(token)) if {token[:cut], token[cut:]} <= ranks.keys()),
            key=lambda parts: (ranks[parts[0]], ranks[parts[1]]),
        )
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(3, 3 + _NUM_CONTROL - len(_NAMED))]
    finish_tokenizer(tokenizer, (*_NAMED, *reserved, IMAGE_TOKEN))
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, in the order of the ranks."""
    lines = (line.split() for line in path.read_text().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _spell(token: bytes, characters: list[str]) -> str:
    return "".join(characters[byte] for byte in token)


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: printable ones as they are, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
