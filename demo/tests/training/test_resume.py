"""A training that is stopped goes on as if nothing had happened."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spyglass_training.learning import encoder
from spyglass_training.learning.model import adapter_tensors, trainable_model
from spyglass_training.learning.run import Run, read_log
from spyglass_training.served import Mllama

pytestmark = pytest.mark.slow

STEPS = 2


class ImpatientRun(Run):
    """Saves after every step, and stops after the first."""

    def is_due(self) -> bool:
        return True

    def save(self, state: Mapping[str, Any]) -> None:
        super().save(state)
        raise KeyboardInterrupt


def trained(model: Mllama, folder: Path) -> dict[str, Any]:
    encoder.train_encoder(model.vision, model.config, Run(folder, "encoder", STEPS))
    return adapter_tensors(model)


def test_a_stopped_training_ends_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH", 4)
    monkeypatch.setattr(encoder, "_EXAM_BATCHES", 1)
    model = trainable_model()
    expected = trained(deepcopy(model), tmp_path / "whole")
    interrupted = deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        encoder.train_encoder(
            interrupted.vision, interrupted.config, ImpatientRun(tmp_path / "stopped", "encoder", STEPS)
        )
    found = trained(deepcopy(model), tmp_path / "stopped")
    start = adapter_tensors(model)
    changed = [name for name in expected if not np.array_equal(start[name], expected[name])]
    assert len(changed) > 80
    assert all(name.startswith("vision_model.") for name in changed)
    # sums are rounded differently from run to run, far less than a step changes
    off = sum(float(((found[name] - tensor) ** 2).sum()) for name, tensor in expected.items())
    moved = sum(float(((start[name] - tensor) ** 2).sum()) for name, tensor in expected.items())
    assert off < 0.01 * moved
    [exam] = [line for line in read_log(tmp_path / "stopped", "encoder") if "kind" in line]
    assert exam["step"] == STEPS
