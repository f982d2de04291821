"""The second phase: projector and cross-attention layers learn to answer, the text model frozen.

Owns the loop over conversations, and what the text model alone would say. Knows nothing of drawing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from spyglass_training.learning.conversations import Conversations, Talks
from spyglass_training.learning.loop import Pace, learn
from spyglass_training.learning.model import features, fused_parts
from spyglass_training.learning.precision import Basis, Weights
from spyglass_training.learning.run import Run
from spyglass_training.learning.sequences import (
    PREFIXES,
    TURN_END,
    Beginnings,
    Prefix,
    Sequences,
    Turn,
    text_only,
    tokenize,
)
from spyglass_training.learning.views import PictureViews
from spyglass_training.served import Mllama, ModelConfig
from spyglass_training.talk.unrelated import QUESTIONS
from spyglass_training.world import WORDS

_PICTURES, _EACH = 16, 4
_MUON_RATE, _ADAM_RATE = 0.015, 1e-3
_MISS_WEIGHT = 1.0
_OUTPUT = Basis(scale=5.0)
"""The text model's states are large where the new layers add to them: their outputs grow this much faster."""
_SEED, _EXAM_SEED = 3, 4
_EXAM_BATCHES = 12
_PACE = Pace(log_every=10, exam_every=200, warmup=20)
_ROUND = 50
"""So many lots are taken twice, one after the other: the second time what the text model thinks of them is known."""
_FREQUENT = 8192
"""Answers choose among the most frequent tokens, which come first, and the words of the world: nothing else is near."""
_UNRELATED_TOKENS = 16
_KEPT = 30_000
"""Conversations whose beginnings are kept; each takes some 60 kB."""
_BASIS_BATCHES = 12
_FLOOR = 0.01
"""Of the mean strength: what is weaker than that is not made as strong as the rest."""
_READERS = (".q.weight", ".gate_up.weight", "projector.weight")
_OUTPUTS = ("o.weight", "mlp.down.weight")


def train_answers(model: Mllama, tokenizer: Tokenizer, run: Run) -> None:
    """Trains projector and cross-attention in place; goes on where the run stopped before."""
    torch.manual_seed(_SEED)
    used = dict(_trained(model))
    for parameter in used.values():
        parameter.requires_grad_(True)
    prefixes = read_prefixes(model, tokenizer)
    unrelated = _unrelated(model, tokenizer, prefixes, run.folder / "unrelated.json")
    lots = Conversations(_SEED, _PICTURES, _EACH, run.total, tokenizer, unrelated)
    exam = Conversations(_EXAM_SEED, _PICTURES, _EACH, 1, tokenizer, {})
    beginnings = Beginnings(model.text, prefixes, _KEPT)
    words = tokenizer.encode(" ".join(("", *WORDS)), add_special_tokens=False).ids
    common = torch.tensor([*range(_FREQUENT), *words])
    bases = input_bases(model, exam, beginnings)
    if run.is_new:
        spread(used, bases)
    dtype = model.text.head.weight.dtype
    basis = partial(_basis, bases)
    weights = Weights(used.items(), partial(_matrices, model.config), _MUON_RATE, _ADAM_RATE, dtype, basis)

    def wrong(talks: Talks) -> tuple[Tensor, dict[str, float]]:
        logits, right, _, miss = _predict(model, talks, beginnings, common)
        return F.cross_entropy(logits, right) + _MISS_WEIGHT * miss, {"miss": miss.item()}

    numbers = [_lot(step) for step in range(run.total)]
    learn(run, weights, lots, numbers, wrong, partial(_exam, model, exam, beginnings, common), _PACE)
    for parameter in used.values():
        parameter.requires_grad_(False)


@torch.no_grad()
def input_bases(model: Mllama, talks: Conversations, beginnings: Beginnings) -> dict[str, Basis]:
    """Bases in which everything is equally strong that projector and cross-attention layers read, by what reads it.

    Most of a hidden state is the same for every word, and what tells a star from a heart is a small part
    of it; the encoder's states are alike. Without this, attention would take long to find what matters.
    """
    read: dict[str, list[Tensor]] = defaultdict(list)

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read[name].append(output)

    names = [f"text.layers.{index}." for index in model.config.text.cross_layers]
    hooks = [
        layer.attention_norm.register_forward_hook(partial(keep, name))
        for name, layer in zip(names, model.text.cross_layers, strict=True)
    ]
    for lot in map(talks.__getitem__, range(_BASIS_BATCHES)):
        read["vision.projector."].append(features(model.vision, lot.pixels, lot.canvas, model.config).flatten(0, 1))
        look(model, lot, beginnings)
    for hook in hooks:
        hook.remove()
    return {name: Basis(inputs=_equalizer(torch.cat(states).float())) for name, states in read.items()}


def _equalizer(states: Tensor) -> Tensor:
    """The symmetric matrix after which states [rows, size] are about as strong in every direction."""
    strengths, directions = torch.linalg.eigh(states.T @ states / len(states))
    found: Tensor = directions / (strengths + _FLOOR * strengths.mean()).sqrt() @ directions.T
    return found


@torch.no_grad()
def spread(parameters: Mapping[str, nn.Parameter], bases: Mapping[str, Basis]) -> None:
    """Lets weights that start at random read every direction of a basis equally."""
    for name, parameter in parameters.items():
        if name.endswith(_READERS):
            parameter.copy_(_basis(bases, name).outward(parameter.float()))


def _basis(bases: Mapping[str, Basis], name: str) -> Basis:
    if name.endswith(_OUTPUTS):
        return _OUTPUT
    if name.endswith(_READERS):
        return next(basis for stem, basis in bases.items() if name.startswith(stem))
    return Basis()


def _trained(model: Mllama) -> list[tuple[str, nn.Parameter]]:
    cross = [f"layers.{layer}." for layer in model.config.text.cross_layers]
    found = [(f"text.{name}", p) for name, p in model.text.named_parameters() if name.startswith(tuple(cross))]
    return [*found, *((f"vision.projector.{name}", p) for name, p in model.vision.projector.named_parameters())]


def _matrices(config: ModelConfig, name: str, parameter: Tensor) -> list[int] | None:
    """The rows of the matrices in a parameter."""
    return fused_parts(name, parameter, config) if parameter.ndim == 2 else None


def _lot(step: int) -> int:
    """The number of the lot of a step: those of a round come twice."""
    return step // (2 * _ROUND) * _ROUND + step % _ROUND


def _predict(
    model: Mllama, talks: Talks, beginnings: Beginnings, common: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits where answers are given [answer tokens, choices], the right choices, each one's conversation, and how
    far the looks are off."""
    batch, hidden, views = look(model, talks, beginnings)
    asked = (batch.targets >= 0).nonzero()[:, 0]
    targets = batch.targets[asked]
    choices = torch.unique(torch.cat((common, targets)))
    logits = F.linear(model.text.norm(hidden.index_select(0, asked)), model.text.head.weight[choices]).float()
    miss = torch.stack(views.misses).mean() if views.misses else hidden.new_zeros(())
    return logits, torch.searchsorted(choices, targets), batch.rows[asked], miss


def look(model: Mllama, talks: Talks, beginnings: Beginnings) -> tuple[Sequences, Tensor, PictureViews]:
    """The conversations as a batch, their hidden states [tokens, hidden], and how they saw their pictures."""
    batch = Sequences(talks.conversations, beginnings.prefixes, model.config.text)
    views = batch.views(image_states(model, talks.pixels, talks.canvas), talks.owners)
    layers = model.text.layers[model.config.text.cross_layers[0] :]
    return batch, batch.through(model.text, layers, beginnings.read(talks.conversations), views), views


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
        batch.hidden(model.text)
        prefixes.append(Prefix(batch.states(model.config.text.num_self_layers)))
    return prefixes


@torch.no_grad()
def _exam(model: Mllama, exam: Conversations, beginnings: Beginnings, common: Tensor) -> dict[str, float]:
    """Shares of first answers that come out right as a whole, by what was asked."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    losses = []
    for talks in map(exam.__getitem__, range(500_000, 500_000 + _EXAM_BATCHES)):
        logits, targets, rows, _ = _predict(model, talks, beginnings, common)
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
        hidden = batch.hidden(model.text)
        ends = torch.tensor([len(i) for i in ids]).cumsum(0) - 1
        for answer, token in zip(answers, model.text.logits(hidden[ends]).argmax(-1).tolist(), strict=True):
            answer.append(token)
    texts = (tokenizer.decode(answer, skip_special_tokens=False) for answer in answers)
    whole = (text[: text.index(TURN_END) + len(TURN_END)] if TURN_END in text else text for text in texts)
    known = dict(zip(QUESTIONS, whole, strict=True))
    file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return known
