"""The process that `spyglass plan --measure` starts: measures what this machine's device reaches, and what the engine
does with random weights in the sizes of a config.json.

    python -m spyglass_server.runtime.measurement < request.json

The request has `config` (a config.json), `options` (of `spyglass-server`), `loads` (each `prompt`, `answer`, `images`,
`tiles` and `at_once`) and `seconds`, the time for all loads together. The answer on stdout has `limits` of a step,
`memory` in bytes and, for each load, the measured times in seconds with the rates that the device reached meanwhile.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from spyglass_common.settings import add_settings
from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineInfo
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.planning.plan import SLICE_OPERATIONS
from spyglass_server.runtime.launch import CheckpointLoader, step_limits
from spyglass_server.runtime.measured_load import Load, MeasuredLoad
from spyglass_server.runtime.measured_rates import RateProbe
from spyglass_server.settings import SETTINGS

_TURN_S = 0.5
_TWIN_HEAD_DIM = 16


def main() -> None:
    """Reads a request from stdin and answers on stdout."""
    request = json.load(sys.stdin)
    config, options = request["config"], request["options"]
    loads = [Load(**load) for load in request["loads"]]
    settings = _settings(options)
    twin, _ = _load_engine(_twin(config), settings)
    allocated = allocated_bytes()
    core, info = _load_engine(config, settings)
    memory = asdict(info.memory) | {"allocated_bytes": allocated_bytes() - allocated}
    probe = RateProbe(config, info)
    limits = {**step_limits(settings, info.device), "slice_operations": SLICE_OPERATIONS[info.device]}
    found = []
    for load in loads:
        runs = MeasuredLoad(core, config, load), MeasuredLoad(twin, _twin(config), load)
        chunk = limits["max_step_tokens" if load.at_once == 1 else "max_chunk_tokens"]
        probe.begin(load.at_once, min(int(chunk), load.prompt))
        found.append(_measure(*runs, probe, request["seconds"] / len(loads)))
    json.dump({"limits": limits, "memory": memory, "loads": found}, sys.stdout)


def _measure(model: MeasuredLoad, twin: MeasuredLoad, probe: RateProbe, seconds: float) -> dict[str, float]:
    """Runs a load on the model, its twin and the probe in turns, so that other work on the machine slows all alike."""
    ends = time.perf_counter() + seconds
    twin.fill(seconds / 4)
    model.fill(seconds / 2)
    while True:
        model.run(_TURN_S)
        twin.run(_TURN_S / 4)
        probe.run(_TURN_S / 4)
        if time.perf_counter() >= ends:
            break
    model.stop()
    twin.stop()
    return model.summary() | {"fixed": twin.seconds_per_step} | probe.rates()


def _settings(options: Sequence[str]) -> EngineConfig:
    parser = argparse.ArgumentParser()
    add_settings(parser, SETTINGS, {})
    return EngineConfig.from_options(parser.parse_args([*options, "--load-format", "dummy"]))


def _load_engine(config: Mapping[str, Any], settings: EngineConfig) -> tuple[EngineCore, EngineInfo]:
    """Loads the engine with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
        _tokenizer().save(f"{folder}/tokenizer.json")
        return CheckpointLoader(folder=Path(folder), settings=settings).load()


def _tokenizer() -> Tokenizer:
    """Returns a tokenizer with a token for each byte: grammars need one, though no load has a grammar."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _twin(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model with as many layers and heads but almost no width: its steps take only size-independent time."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    text |= {"hidden_size": _TWIN_HEAD_DIM * text["num_attention_heads"], "intermediate_size": 64}
    vision |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }
    return {**config, "text_config": text, "vision_config": vision}


def allocated_bytes() -> int:
    """Returns the memory of all tensors in this process."""
    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    found = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), Tensor) or thing.is_meta:
            continue
        if thing.layout == torch.strided:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        else:  # packed, which has no storage
            found[id(thing)] = thing.numel() * thing.element_size()
    return sum(found.values())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
