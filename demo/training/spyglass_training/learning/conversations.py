"""Conversations about freshly drawn pictures, drawn in a process beside the training.

Owns their mixture and what makes batch number k the same in every run. Knows nothing of networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from spyglass_training.drawing.scenes import Scene
from spyglass_training.learning.labels import SPEC, draw_canvas, draw_picture, owners
from spyglass_training.learning.sequences import PREFIX_WEIGHTS, TURN_END, Tokens, Turn, tokenize
from spyglass_training.served import tile_image
from spyglass_training.talk.phrases import Question
from spyglass_training.talk.questions import ask

_SCENES = {
    "one": 15, "two": 31, "several": 23, "varied": 15, "digit": 10, "number": 2, "word": 2, "nothing": 2,
}  # fmt: skip
_IMAGE_FIRST = 0.65
_UNRELATED = 0.05
_SECOND_TURN, _SECOND_PICTURE = 0.15, 0.4
_OF_WHOLE = frozenset({"count", "background", "digit", "number", "word"})
"""Questions whose answers the class tokens know, too."""


@dataclass(frozen=True, slots=True)
class Talks:
    """Pictures of one canvas, uint8 [images, tiles, 3, tile, tile], and conversations about them."""

    canvas: tuple[int, int]  # (columns, rows)
    pixels: Tensor
    owners: Tensor
    """The thing that each token of a picture shows, WHOLE or -1: [images, tokens]."""
    conversations: list[Tokens]
    about: list[str]


class Conversations(Dataset[Talks]):
    """Batch number k of `total`, the same whenever it is asked for."""

    def __init__(
        self, seed: int, pictures: int, each: int, total: int, tokenizer: Tokenizer, unrelated: Mapping[str, str]
    ) -> None:
        """`unrelated`: questions that have nothing to do with a picture, and what the text model answers."""
        self._seed, self._pictures, self._each, self._total = seed, pictures, each, total
        self._tokenizer, self._unrelated = tokenizer, dict(unrelated)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Talks:
        rng = Random(f"{self._seed}:{index}")
        canvas = draw_canvas(rng)
        scenes, pixels, shown = [], [], []
        for _ in range(self._pictures):
            picture, scene, regions = draw_picture(rng.choices(list(_SCENES), list(_SCENES.values()))[0], rng, canvas)
            scenes.append(scene)
            pixels.append(tile_image(picture, SPEC).pixels)
            shown.append(owners(scene, regions, canvas))
        talks = [self._talk(at, scenes, rng) for at in range(len(scenes)) for _ in range(self._each)]
        stacked = torch.from_numpy(np.stack(pixels))
        seen = torch.from_numpy(np.stack(shown))
        return Talks(canvas, stacked, seen, [tokens for tokens, _ in talks], [about for _, about in talks])

    def _talk(self, at: int, scenes: Sequence[Scene], rng: Random) -> tuple[Tokens, str]:
        """A conversation that begins with picture `at`, and what its first question is about."""
        prefix = rng.choices(range(len(PREFIX_WEIGHTS)), PREFIX_WEIGHTS)[0]
        first = self._ask(scenes[at], rng)
        turns = [self._turn(first, at, scenes[at], rng)]
        if rng.random() < _SECOND_TURN:
            another = rng.random() < _SECOND_PICTURE
            now = rng.randrange(len(scenes)) if another else at
            question = self._ask(scenes[now], rng)
            turns.append(self._turn(question, now if another else None, scenes[now], rng))
        last = turns[-1].answer
        ends = last not in self._unrelated.values() or last.endswith(TURN_END)
        return tokenize(self._tokenizer, prefix, turns, ends), first.about

    def _turn(self, question: Question, image: int | None, scene: Scene, rng: Random) -> Turn:
        whole = question.about in _OF_WHOLE
        return Turn(question.text, question.answer, image, rng.random() < _IMAGE_FIRST, scene, whole)

    def _ask(self, scene: Scene, rng: Random) -> Question:
        if self._unrelated and rng.random() < _UNRELATED:
            text, answer = rng.choice(list(self._unrelated.items()))
            return Question("unrelated", text, answer)
        return ask(scene, rng)
