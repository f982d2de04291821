"""Has the product's server run a model with random weights, which its engine process makes on the device."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from checkpoints import IMAGE_TOKEN, SPECIAL_TOKENS, finish_tokenizer, write_prompt_files
from spyglass_server.engine.messages import EngineInfo
from spyglass_server.engine.worker.core import EngineCore

_NUM_TILES = 32
_LONGEST = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLoader:
    """An EngineLoader without weight files."""

    size: str
    device: str
    cache_bytes: int

    def load(self) -> tuple[EngineCore, EngineInfo]:
        import torch  # only the engine process may need it

        from engine import LIMITS, config_of, make_core, make_runner
        from random_model import random_model
        from spyglass_server.runtime.launch import PAGE_SIZE
        from spyglass_server.runtime.runner import ModelRunner

        config, device, dtype = config_of(self.size), torch.device(self.device), torch.bfloat16
        num_pages = self.cache_bytes // ModelRunner.page_bytes(config, PAGE_SIZE, dtype)
        runner = make_runner(random_model(config, dtype, device), num_pages, _NUM_TILES, dtype, device)
        return make_core(runner, num_pages, _NUM_TILES), EngineInfo(
            dtype="bfloat16",
            quantization="none",
            device=device.type,
            max_tokens=min(_LONGEST, num_pages * PAGE_SIZE),
            max_image_tiles=_NUM_TILES,
            max_choices=LIMITS.max_batch,
        )


def write_files(folder: Path, vocab_size: int) -> Path:
    """Writes what the server reads of a checkpoint whose tokenizer has a text for each token of the vocabulary."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [f"w{i}" for i in range(vocab_size - len(symbols) - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    finish_tokenizer(tokenizer, (*SPECIAL_TOKENS, IMAGE_TOKEN))
    return write_prompt_files(folder, tokenizer)
