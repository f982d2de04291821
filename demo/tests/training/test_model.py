"""The model in training is the one that is served."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fidelity.ours import Ours
from pictures import noise
from spyglass_demo.checkpoint import write_checkpoint
from spyglass_server.images import tile_image
from spyglass_training.learning.answers import look, read_prefixes
from spyglass_training.learning.conversations import Talks
from spyglass_training.learning.labels import SPEC
from spyglass_training.learning.model import adapter_tensors, text_sizes, tokenizer, trainable_model
from spyglass_training.learning.sequences import PREFIXES, Beginnings, Turn, tokenize
from spyglass_training.learning.start import start_tensors

pytestmark = pytest.mark.slow

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    """An adapter that has learned nothing, but whose cross-attention layers do something."""
    rng = np.random.default_rng(5)
    tensors = start_tensors(text_sizes())
    for name, tensor in tensors.items():
        if name.startswith("language_model") and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:] = rng.standard_normal(tensor.shape) * 0.05
    return tensors


def test_an_adapter_comes_out_as_it_went_in(weights: dict[str, Array]) -> None:
    found = adapter_tensors(trainable_model(weights, torch.float32))
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


def test_conversations_are_read_as_the_engine_reads_them(weights: dict[str, Array], tmp_path: Path) -> None:
    """Two conversations with several turns and pictures, behind prefixes of different lengths."""
    write_checkpoint(tmp_path, lambda line: None, weights)
    served, model = Ours.load(tmp_path), trainable_model(weights, torch.float32)
    words = tokenizer()
    pictures = [noise((300, 200), seed) for seed in range(2)]
    talks = [
        tokenize(words, 0, [Turn("What is this?", "A red circle.", 0)]),
        tokenize(
            words,
            5,
            [Turn("How many?", "Two.", 1, image_first=False), Turn("And here?", "One.", 0), Turn("Why?", "So.", None)],
        ),
    ]
    with torch.no_grad():
        prefixes = read_prefixes(model, words)
        pixels = torch.from_numpy(np.stack([tile_image(picture, SPEC).pixels for picture in pictures]))
        lot = Talks((2, 2), pixels, torch.full((2, 148), -1), talks, ["what", "what"])
        beginnings = Beginnings(model.text, prefixes, limit=1)
        _, first, _ = look(model, lot, beginnings)
        batch, hidden, _ = look(model, lot, beginnings)
        torch.testing.assert_close(hidden, first, rtol=0, atol=5e-3)
        logits = model.text.logits(hidden)
    for row, talk in enumerate(talks):
        before = words.encode(PREFIXES[talk.prefix], add_special_tokens=False).ids
        shown = [pictures[image] for image in dict.fromkeys(i for i in talk.images if i >= 0)]
        expected = served.logits([*before, *talk.ids], shown)[len(before) :]
        torch.testing.assert_close(logits[batch.rows == row], expected, rtol=0, atol=2e-4)
