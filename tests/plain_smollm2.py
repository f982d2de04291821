"""Plain SmolLM2, read from its GGUF file by transformers: what the demo model's text must equal.

Owns the reading, once for all tests of a process, and the check of an answer.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from spyglass_demo.smollm2 import find_gguf


@functools.cache
def plain_smollm2() -> Any:
    """The LlamaForCausalLM that transformers makes of it, in float32."""
    path = find_gguf()
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy_choices(prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """What plain SmolLM2 would choose in the place of each token of `answer`, given all before it.

    It answers `answer` itself exactly if this is equal to it.
    """
    logits = plain_smollm2()(torch.tensor([[*prompt, *answer[:-1]]]), logits_to_keep=len(answer)).logits[0]
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    return chosen
