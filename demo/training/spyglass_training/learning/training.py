"""The whole training: both phases, and what they leave behind.

Owns their order and the files that come out. Knows nothing of what happens in a phase.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from spyglass_demo.adapter import FILE
from spyglass_training.learning.answers import train_answers
from spyglass_training.learning.curve import draw_curve
from spyglass_training.learning.encoder import train_encoder
from spyglass_training.learning.model import adapter_tensors, tokenizer, trainable_model
from spyglass_training.learning.precision import fastest_dtype
from spyglass_training.learning.run import Run
from spyglass_training.served import Mllama


def train(folder: Path, encoder_steps: int, answer_steps: int) -> Path:
    """Trains both phases, going on where an earlier run in `folder` stopped. Returns the adapter's file."""
    model = trainable_model(dtype=fastest_dtype())
    train_encoder(model.vision, model.config, Run(folder, "encoder", encoder_steps))
    _write(model, folder)
    train_answers(model, tokenizer(), Run(folder, "answers", answer_steps))
    return _write(model, folder)


def _write(model: Mllama, folder: Path) -> Path:
    """The adapter in 16 bits, and the curve so far."""
    half = {name: tensor.astype(np.float16) for name, tensor in adapter_tensors(model).items()}
    too_large = [name for name, tensor in half.items() if not np.isfinite(tensor).all()]
    if too_large:
        raise ValueError(f"these weights do not fit into 16 bits: {', '.join(too_large)}")
    save_file(half, folder / FILE)
    draw_curve(folder, folder / "curve.png")
    print(f"wrote {folder / FILE} ({(folder / FILE).stat().st_size / 1e6:.1f} MB) and its curve", flush=True)
    return folder / FILE
