"""The first phase: the vision encoder learns to see, from scratch, asked by heads.

Owns the loop over pictures. Knows nothing of text.
"""

from collections import Counter, defaultdict
from functools import partial

import torch
from torch import Tensor

from spyglass_training.learning.batches import Batch, Pictures
from spyglass_training.learning.heads import Heads, hits, loss
from spyglass_training.learning.loop import Pace, learn
from spyglass_training.learning.model import features, fused_parts
from spyglass_training.learning.precision import Weights
from spyglass_training.learning.run import Run
from spyglass_training.served import ModelConfig, VisionEncoder

BATCH = 32
_MUON_RATE, _ADAM_RATE = 0.006, 1.5e-3
_SEED, _EXAM_SEED = 1, 2
_EXAM_BATCHES = 12
_PACE = Pace(log_every=50, exam_every=500, warmup=100)


def train_encoder(encoder: VisionEncoder, config: ModelConfig, run: Run) -> None:
    """Trains the encoder in place; goes on where the run stopped before."""
    torch.manual_seed(_SEED)
    heads = Heads(config.vision.hidden_size, len(config.vision.intermediate_layers))
    used = [(name, p) for name, p in encoder.named_parameters() if not name.startswith("projector.")]
    for _, parameter in used:
        parameter.requires_grad_(True)
    dtype = encoder.class_embedding.dtype
    weights = Weights([*used, *heads.named_parameters()], partial(_matrices, config), _MUON_RATE, _ADAM_RATE, dtype)

    def wrong(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return loss(_answers(encoder, heads, batch, config), batch.labels, batch.progress), {}

    exam = partial(_exam, encoder, heads, config)
    learn(run, weights, Pictures(_SEED, BATCH, run.total), range(run.total), wrong, exam, _PACE)
    for _, parameter in used:
        parameter.requires_grad_(False)


def _answers(encoder: VisionEncoder, heads: Heads, batch: Batch, config: ModelConfig) -> dict[str, Tensor]:
    states = features(encoder, batch.pixels, batch.canvas, config)
    answers: dict[str, Tensor] = heads(states, config.vision.tokens_per_tile)
    return answers


def _matrices(config: ModelConfig, name: str, parameter: Tensor) -> list[int] | None:
    """The rows of the matrices in a parameter of the encoder's layers."""
    if parameter.ndim != 2 or not name.startswith(("layers.", "global_layers.")):
        return None
    return fused_parts(f"vision.{name}", parameter, config)


@torch.no_grad()
def _exam(encoder: VisionEncoder, heads: Heads, config: ModelConfig) -> dict[str, float]:
    """Shares of right answers on pictures that are not trained on."""
    right: dict[str, float] = defaultdict(float)
    asked: Counter[str] = Counter()
    for batch in map(Pictures(_EXAM_SEED, BATCH, 1_000_000).__getitem__, range(500_000, 500_000 + _EXAM_BATCHES)):
        for name, (good, count) in hits(_answers(encoder, heads, batch, config), batch.labels).items():
            right[name] += good
            asked[name] += count
    return {name: right[name] / asked[name] for name in asked if asked[name]}
