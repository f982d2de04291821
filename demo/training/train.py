"""Trains the demo model's vision adapter from scratch: `make train`.

    python demo/training/train.py

Draws its own images. The vision encoder is trained first; then projector and cross-attention layers
learn to answer questions while the text model is frozen. All state is kept in a folder, so a run that
was stopped resumes when it is started again. At the end, and after each phase, the adapter is written
to the folder as adapter.safetensors, and the training curve as curve.png.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent
DEFAULT_FOLDER = DEMO.parent / ".cache" / "training"
INSTALLED = DEMO / "spyglass_demo" / "adapter.safetensors"
ENCODER_STEPS = 5000
ANSWER_STEPS = 1300


def keep_memory() -> None:
    """Tells glibc to keep freed memory: asking the system again for every tensor takes a tenth of the time."""
    m_trim_threshold, m_mmap_threshold, limit = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # another C library
    mallopt(m_mmap_threshold, limit)
    mallopt(m_trim_threshold, limit)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--folder", type=Path, default=DEFAULT_FOLDER, help="where the run is kept (default: %(default)s)")
    add("--encoder-steps", type=int, default=ENCODER_STEPS, help="steps of the first phase (default: %(default)s)")
    add("--answer-steps", type=int, default=ANSWER_STEPS, help="steps of the second phase (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="threads of the training (default: all cores)")
    add("--install", action="store_true", help="replace the demo package's adapter by the trained one at the end")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    # OpenMP reads this when torch is loaded: long active waiting would slow down the processes that draw.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    keep_memory()
    import torch

    from spyglass_training.learning.training import train

    torch.set_num_threads(given.threads)
    file = train(given.folder, given.encoder_steps, given.answer_steps)
    if given.install:
        INSTALLED.write_bytes(file.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
