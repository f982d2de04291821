"""The prompts on which models are compared: token ids with their pictures.

Owns their shapes: where images stand, how large they are. The tokens between are random, as the
weights are.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

BEGIN = 256
IMAGE = 264
"""Ids of the byte tokenizer in checkpoints."""


@dataclass(frozen=True)
class Prompt:
    """A prompt; `pattern` has a number for so many text tokens and "I" for an image token."""

    pattern: str
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each picture, in pixels; tiles are 28 pixels wide."""

    def token_ids(self, image_token: int = IMAGE) -> list[int]:
        """The same ids on every call, the begin token first."""
        rng = np.random.default_rng(len(self.pattern))
        ids = [BEGIN]
        for word in self.pattern.split():
            ids += [image_token] if word == "I" else rng.integers(0, BEGIN, int(word)).tolist()
        return ids

    def images(self) -> list[Image.Image]:
        """Pictures of noise over a gradient, all different."""
        return [picture(size, seed) for seed, size in enumerate(self.sizes)]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An RGB picture with both coarse and fine structure."""
    width, height = size
    rng = np.random.default_rng(seed)
    gradient = np.linspace(0, 150, width * height * 3).reshape(height, width, 3)
    pixels = gradient + rng.integers(0, 106, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


PROMPTS = {
    "text only": Prompt("40"),
    "long text": Prompt("900"),
    "one image": Prompt("I 20", ((60, 50),)),
    "text, image, text": Prompt("15 I 20", ((56, 28),)),
    "one tile": Prompt("8 I 12", ((20, 14),)),
    "four tiles": Prompt("8 I 12", ((90, 90),)),
    "four tiles in a column": Prompt("8 I 12", ((20, 110),)),
    "three tiles in a row": Prompt("8 I 12", ((84, 25),)),
    "two images": Prompt("5 I 12 I 14", ((30, 70), (28, 28))),
    "two images side by side": Prompt("9 I I 14", ((50, 20), (60, 60))),
    "an image, then two": Prompt("4 I 6 I I 9", ((28, 28), (90, 30), (56, 56))),
    "two images, then one": Prompt("4 I I 6 I 9", ((28, 28), (30, 90), (56, 56))),
    "image in the second turn": Prompt("120 I 30", ((64, 48),)),
    "image at the end": Prompt("10 I", ((64, 48),)),
}
