"""Writes SmolLM2-135M-Instruct, the text model inside the embedded one, as a folder that other servers load.

    python benchmarks/plain_model.py .cache/plain-smollm2
    transformers serve --device cpu --dtype float32 --continuous-batching --port 8081
    make bench ARGS="--peer 'transformers serve=http://127.0.0.1:8081/v1' --peer-model $PWD/.cache/plain-smollm2"

The weights are the same, in float32.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spyglass_server.demo.smollm2 import find_gguf


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it")
    given = parser.parse_args(arguments)
    source = find_gguf()
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(given.folder)
    unpacked = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    del unpacked.config.quantization_config  # as which transformers would not save it
    plain = AutoModelForCausalLM.from_config(unpacked.config, dtype=torch.float32)
    plain.load_state_dict(unpacked.state_dict())
    plain.save_pretrained(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
