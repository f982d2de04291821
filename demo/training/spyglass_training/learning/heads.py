"""What the encoder's states are asked while it learns; thrown away afterwards.

Owns the questions as linear heads, their losses and how often they are right. Knows nothing of text.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_training.drawing.scenes import SCENES
from spyglass_training.learning.labels import (
    CELLS,
    CHARACTERS,
    KINDS_OF_THING,
    MAX_DIGITS,
    MAX_THINGS,
    NO_LABEL,
)
from spyglass_training.world import COLOURS, SIDES, WORDS

_PATCH = {
    "kind": len(KINDS_OF_THING) + 1,
    "character": len(CHARACTERS) + 1,
    "colour": len(COLOURS),
    "side": len(SIDES),
    "other_kind": len(KINDS_OF_THING) + 1,
    "other_colour": len(COLOURS),
    "like_kind": MAX_THINGS,
    "like_colour": MAX_THINGS,
    "part_of_word": len(WORDS),
}
_PICTURE = {
    "scene": (1, len(SCENES)),
    "count": (1, MAX_THINGS + 1),
    "ground": (1, len(COLOURS)),
    "word": (1, len(WORDS)),
    "digits": (MAX_DIGITS, 10),
    "slot_kind": (MAX_THINGS, len(KINDS_OF_THING) + 1),
    "slot_colour": (MAX_THINGS, len(COLOURS)),
}
_FIRST = {"kind": 4.0, "character": 2.0, "colour": 1.0, "place": 2.0, "occupied": 2.0, "ground": 0.5, "scene": 0.5}
_LATER = {
    "kind": 4.0, "character": 2.0, "place": 2.0, "like_kind": 3.0, "count": 3.0, "word": 0.2, "part_of_word": 0.2,
}  # fmt: skip
_NOT_YET = 0.1
_TURN = 0.3, 0.5
"""Shares of the run between which the weights go over from the first ones to the later ones.

What lies here is learned first. What asks for more than one place can only be learned after that, and its
losses, which stay large for long, would drown the others.
"""
_EARLY = 1
"""Of the intermediate states, the one that is asked for outlines."""


class Heads(nn.Module):
    """Linear readings of the encoder's states."""

    def __init__(self, width: int, num_states: int) -> None:
        super().__init__()
        self._width, self._num_states = width, num_states
        self.early = nn.Linear(width, CELLS * CELLS)
        self.norm = nn.LayerNorm(width)
        self.place = nn.Linear(width, 3)
        self.patch = nn.ModuleDict({name: nn.Linear(width, size) for name, size in _PATCH.items()})
        self.picture = nn.ModuleDict({name: nn.Linear(width, n * size) for name, (n, size) in _PICTURE.items()})

    def forward(self, features: Tensor, tokens_per_tile: int) -> dict[str, Tensor]:
        """features [images, tokens, width * (1 + states)]. Patches' answers are [images, patches, classes]
        and those of the whole picture [images, tiles, places, classes], one from each tile's class token."""
        images = features.shape[0]
        final = features[..., : self._width].reshape(images, -1, tokens_per_tile, self._width)
        states = features[..., self._width :].reshape(images, -1, tokens_per_tile, self._width, self._num_states)
        final = self.norm(final)
        classes, patches = final[:, :, 0], final[:, :, 1:].flatten(1, 2)
        answers = {name: head(patches) for name, head in self.patch.items()}
        answers["place"] = self.place(patches)
        answers["occupied"] = self.early(states[:, :, 1:, :, _EARLY].flatten(1, 2))
        for name, head in self.picture.items():
            answers[name] = head(classes).unflatten(-1, _PICTURE[name])
        return answers


def loss(answers: dict[str, Tensor], labels: dict[str, Tensor], progress: float) -> Tensor:
    """The weighted sum of all heads' losses. `progress` is the share of the run that is over."""
    start, end = _TURN
    later = min(1.0, max(0.0, (progress - start) / (end - start)))
    total = answers["place"].new_zeros(())
    for name in answers:
        weight = (1 - later) * _FIRST.get(name, _NOT_YET) + later * _LATER.get(name, 1.0)
        total = total + weight * _loss_of(name, answers[name], labels)
    return total


def _loss_of(name: str, answer: Tensor, labels: dict[str, Tensor]) -> Tensor:
    if name == "occupied":
        return F.binary_cross_entropy_with_logits(answer, labels[name])
    if name == "place":
        wrong = F.smooth_l1_loss(answer, labels[name], reduction="none", beta=0.2).sum(-1)
        return (wrong * labels["has_place"]).sum() / labels["has_place"].sum().clamp(min=1)
    target = labels[name]
    if name in _PICTURE:
        target = target.view(target.shape[0], 1, -1).expand(answer.shape[:-1])
    if name == "kind":  # most patches are empty
        weight = torch.ones(answer.shape[-1])
        weight[0] = 0.3
        return F.cross_entropy(answer.flatten(0, -2), target.flatten(), weight)
    if not (target != NO_LABEL).any():
        return answer.sum() * 0
    return F.cross_entropy(answer.flatten(0, -2), target.flatten(), ignore_index=NO_LABEL)


def hits(answers: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, tuple[float, int]]:
    """How many answers are right, of how many: by head. Patches that hold nothing do not count."""
    found = {}
    for name, answer in answers.items():
        if name in ("occupied", "place"):
            continue
        target = labels[name]
        if name in _PICTURE:
            best = answer.mean(1).argmax(-1).view(target.shape)
            asked = target != NO_LABEL
        else:
            best = answer.argmax(-1)
            asked = (target != NO_LABEL) & (labels["kind"] > 0)
            if name == "character":
                asked &= target > 0
        if name == "slot_kind":
            asked &= target > 0
        found[name] = (float(((best == target) & asked).sum()), int(asked.sum()))
    return found
