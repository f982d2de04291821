"""The second phase: projector and cross-attention layers learn to answer, the text model frozen.

Owns the loop over conversations, and what the text model alone would say. Knows nothing of drawing.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_training.learning.batches import Pictures, load
from spyglass_training.learning.conversations import Conversations, Talks
from spyglass_training.learning.model import features, fused_parts
from spyglass_training.learning.precision import MatrixAttention, Weights, schedule
from spyglass_training.learning.run import Run
from spyglass_training.learning.sequences import PREFIXES, TURN_END, Prefix, Sequences, Turn, text_only, tokenize
from spyglass_training.talk.unrelated import QUESTIONS

_PICTURES, _EACH = 16, 4
_MUON_RATE, _ADAM_RATE = 0.004, 1e-3
_MISS_WEIGHT = 0.3
_OUTPUT_SCALE = 8.0
"""The text model's states are large where the new layers add to them: their outputs grow this much faster."""
_SEED, _EXAM_SEED = 3, 4
_EXAM_BATCHES = 12
_LOG_EVERY, _EXAM_EVERY = 25, 100
_UNRELATED_TOKENS = 16
_WHITENING_BATCHES = 12
_FLOOR = 0.01
"""Of the mean strength: what is weaker than that is not made as strong as the rest."""
_OUTPUTS = ("o.weight", "mlp.down.weight")


def train_answers(model: Mllama, tokenizer: Tokenizer, run: Run) -> None:
    """Trains projector and cross-attention in place; goes on where the run stopped before."""
    torch.manual_seed(_SEED)
    used = dict(_trained(model))
    for parameter in used.values():
        parameter.requires_grad_(True)
    steps, first = run.total, 0
    saved = run.resume()
    if saved is None:
        whiten(model)
    weights = Weights(used.items(), partial(_matrices, model.config), _MUON_RATE, _ADAM_RATE, _scale)
    if saved:
        weights.restore(saved["weights"])
        first = saved["step"]
    prefixes = read_prefixes(model, tokenizer)
    unrelated = _unrelated(model, tokenizer, prefixes, run.folder / "unrelated.json")
    lots = Conversations(_SEED, _PICTURES, _EACH, steps, tokenizer, unrelated)
    exam = Conversations(_EXAM_SEED, _PICTURES, _EACH, 1, tokenizer, {})
    for step, talks in enumerate(load(lots, first, steps), start=first):
        logits, targets, _, miss = _predict(model, talks, prefixes)
        wrong = F.cross_entropy(logits, targets)
        torch.autograd.backward(wrong + _MISS_WEIGHT * miss)
        norm = weights.step(schedule(step, steps))
        done = step + 1
        if done % _LOG_EVERY == 0:
            speed = (done - first) * _PICTURES * _EACH / run.since_start_s
            run.log(done, {"loss": wrong.item(), "miss": miss.item(), "gradient": norm, "questions_per_s": speed})
        if done % _EXAM_EVERY == 0 or done == steps:
            run.log(done, _exam(model, exam, prefixes))
        if run.is_due() or done == steps:
            run.save({"weights": weights.state(), "step": done})
    for parameter in used.values():
        parameter.requires_grad_(False)


@torch.no_grad()
def whiten(model: Mllama) -> None:
    """Starts the projector so that the encoder's states come out around zero and equally strong in all directions.

    Their own mean is much larger than what tells one patch from another, and some directions are much
    stronger than others: attention would take long to find what matters.
    """
    pictures = Pictures(_EXAM_SEED, _PICTURES, 1)
    states = []
    for batch in map(pictures.__getitem__, range(_WHITENING_BATCHES)):
        with MatrixAttention():
            states.append(features(model.vision, batch.pixels, batch.canvas, model.config).flatten(0, 1))
    every = torch.cat(states)
    mean, covariance = every.mean(0), every.T.cov()
    strengths, directions = torch.linalg.eigh(covariance)  # ascending
    size = model.vision.projector.out_features
    strengths, directions = strengths[-size:], directions[:, -size:]
    matrix = (directions / (strengths + _FLOOR * strengths.mean()).sqrt()).T
    model.vision.projector.weight.copy_(matrix)
    model.vision.projector.bias.copy_(-matrix @ mean)


def _trained(model: Mllama) -> list[tuple[str, nn.Parameter]]:
    cross = [f"layers.{layer}." for layer in model.config.text.cross_layers]
    found = [(f"text.{name}", p) for name, p in model.text.named_parameters() if name.startswith(tuple(cross))]
    return [*found, *((f"vision.projector.{name}", p) for name, p in model.vision.projector.named_parameters())]


def _matrices(config: ModelConfig, name: str, parameter: Tensor) -> list[int] | None:
    """The rows of the matrices in a parameter."""
    return fused_parts(name, parameter, config) if parameter.ndim == 2 else None


def _scale(name: str) -> float:
    return _OUTPUT_SCALE if name.endswith(_OUTPUTS) else 1.0


def _predict(model: Mllama, talks: Talks, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits where answers are given [answer tokens, vocabulary], their targets, each one's conversation, and how
    far the looks are off."""
    batch = Sequences(talks.conversations, prefixes, model.config.text)
    with MatrixAttention():
        hidden = batch.hidden(model.text, image_states(model, talks.pixels, talks.canvas), talks.owners)
    asked = (batch.targets >= 0).nonzero()[:, 0]
    assert batch.views is not None
    miss = torch.stack(batch.views.misses).mean()
    return model.text.logits(hidden[asked]), batch.targets[asked], batch.rows[asked], miss


def image_states(model: Mllama, pixels: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Keys and values of pictures uint8 [images, tiles, 3, tile, tile] on a canvas of (columns, rows).

    They are [cross layers, 2, kv_heads, images, tokens, head_dim]. The encoder gets no gradient.
    """
    with torch.no_grad():
        states = features(model.vision, pixels, canvas, model.config)
    images = model.vision.projector(states.to(model.vision.projector.weight.dtype))
    flat = images.flatten(0, 1)
    states = torch.stack([layer.image_states(flat) for layer in model.text.cross_layers])
    return states.view(*states.shape[:3], *images.shape[:2], -1)


@torch.no_grad()
def read_prefixes(model: Mllama, tokenizer: Tokenizer) -> list[Prefix]:
    """The keys and values of all prefixes."""
    prefixes = []
    for text in PREFIXES:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        batch = Sequences([text_only(ids)], [], model.config.text)
        with MatrixAttention():
            batch.hidden(model.text)
        prefixes.append(Prefix(batch.states(model.config.text.num_self_layers)))
    return prefixes


@torch.no_grad()
def _exam(model: Mllama, exam: Conversations, prefixes: Sequence[Prefix]) -> dict[str, float]:
    """Shares of first answers that come out right as a whole, by what was asked."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    losses = []
    for talks in map(exam.__getitem__, range(500_000, 500_000 + _EXAM_BATCHES)):
        logits, targets, rows, _ = _predict(model, talks, prefixes)
        losses.append(F.cross_entropy(logits, targets).item())
        missed = set(rows[logits.argmax(-1) != targets].tolist())
        for row, about in enumerate(talks.about):
            asked[about] += 1
            right[about] += row not in missed
    return {"exam_loss": sum(losses) / len(losses)} | {about: right[about] / asked[about] for about in sorted(asked)}


@torch.no_grad()
def _unrelated(model: Mllama, tokenizer: Tokenizer, prefixes: Sequence[Prefix], file: Path) -> Mapping[str, str]:
    """What the text model alone begins to answer to questions that have nothing to do with a picture.

    An answer that is whole ends with the end of the turn.
    """
    if file.exists():
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        return known
    answers: list[list[int]] = [[] for _ in QUESTIONS]
    asked = [tokenize(tokenizer, 0, [Turn(question, "", None)], ends=False).ids for question in QUESTIONS]
    for _ in range(_UNRELATED_TOKENS):
        ids = [[*a, *b] for a, b in zip(asked, answers, strict=True)]
        batch = Sequences([text_only(i) for i in ids], prefixes, model.config.text)
        with MatrixAttention():
            hidden = batch.hidden(model.text)
        ends = torch.tensor([len(i) for i in ids]).cumsum(0) - 1
        for answer, token in zip(answers, model.text.logits(hidden[ends]).argmax(-1).tolist(), strict=True):
            answer.append(token)
    texts = (tokenizer.decode(answer, skip_special_tokens=False) for answer in answers)
    whole = (text[: text.index(TURN_END) + len(TURN_END)] if TURN_END in text else text for text in texts)
    known = dict(zip(QUESTIONS, whole, strict=True))
    file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return known
