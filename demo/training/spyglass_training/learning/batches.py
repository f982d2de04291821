"""Batches of pictures, drawn in a process beside the training.

Owns the mixture of scenes and what makes batch number k the same in every run. Knows nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spyglass_training.learning.labels import Sample, draw_canvas, draw_sample

_MIXTURE = {
    "one": 14, "two": 18, "several": 30, "varied": 10, "digit": 14, "number": 5, "word": 6, "nothing": 3,
}  # fmt: skip
_EASY = {"one": 30, "two": 20, "several": 25, "digit": 25}
_EASY_SHARE, _EASY_UNTIL = 0.6, 0.2  # of the pictures; of the run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one canvas: uint8 [images, tiles, 3, tile, tile], and their targets.

    `progress` is the share of the run that lies before it.
    """

    canvas: tuple[int, int]  # (columns, rows)
    pixels: Tensor
    labels: dict[str, Tensor]
    progress: float


class Pictures(Dataset[Batch]):
    """Batch number k of `total`, the same whenever it is asked for."""

    def __init__(self, seed: int, size: int, total: int) -> None:
        self._seed, self._size, self._total = seed, size, total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"{self._seed}/{index}")
        canvas = draw_canvas(rng)
        progress = index / self._total
        return collate([self._draw(rng, canvas, progress) for _ in range(self._size)], progress)

    def _draw(self, rng: Random, canvas: tuple[int, int], progress: float) -> Sample:
        easy = progress < _EASY_UNTIL and rng.random() < _EASY_SHARE
        mixture = _EASY if easy else _MIXTURE
        kind = rng.choices(list(mixture), list(mixture.values()))[0]
        return draw_sample(kind, rng, canvas, easy)


def collate(samples: list[Sample], progress: float) -> Batch:
    """Joins samples of one canvas."""
    labels = {name: torch.from_numpy(np.stack([s.labels[name] for s in samples])) for name in samples[0].labels}
    return Batch(samples[0].canvas, torch.from_numpy(np.stack([s.pixels for s in samples])), labels, progress)


def load(dataset: Dataset[T], numbers: Sequence[int]) -> DataLoader[T]:
    """The batches of these numbers, drawn ahead in one process of their own."""
    return DataLoader(dataset, batch_size=None, sampler=numbers, num_workers=1, prefetch_factor=4)
