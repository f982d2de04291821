"""Folders that the product's server runs with `--load-format dummy`: a checkpoint's files, but no weights."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from checkpoints import IMAGE_TOKEN, SPECIAL_TOKENS, finish_tokenizer, write_prompt_files
from random_weights import Sizes, VisionSizes
from spyglass_server.runtime.config import ModelConfig


def write_dummy_folder(folder: Path, config: ModelConfig) -> Path:
    """Writes the files; the tokenizer has a text for each token of the vocabulary."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [f"w{i}" for i in range(config.text.vocab_size - len(symbols) - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    finish_tokenizer(tokenizer, (*SPECIAL_TOKENS, IMAGE_TOKEN))
    return write_prompt_files(folder, tokenizer, sizes=_sizes(config), dtype=config.dtype)


def _sizes(config: ModelConfig) -> Sizes:
    text, vision = config.text, config.vision
    return Sizes(
        hidden_size=text.hidden_size,
        num_heads=text.num_heads,
        num_kv_heads=text.num_kv_heads,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_layers,
        cross_layers=text.cross_layers,
        context_length=text.max_position,
        rope_theta=text.rope.theta,
        vision=VisionSizes(
            tile_size=vision.tile_size,
            patch_size=vision.patch_size,
            max_tiles=vision.max_tiles,
            hidden_size=vision.hidden_size,
            num_heads=vision.num_heads,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_layers,
            num_global_layers=vision.num_global_layers,
            intermediate_layers=vision.intermediate_layers,
        ),
    )
