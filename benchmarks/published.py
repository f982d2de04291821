"""The configurations of the published models, as the engine reads them, for runs with dummy weights."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyglass_server.planning.published import CONFIGS
from spyglass_server.runtime.config import ModelConfig, load_config


def _loaded(raw: Mapping[str, Any]) -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw), "utf-8")
        return load_config(Path(folder))


SIZES = {size.upper(): _loaded(raw) for size, raw in CONFIGS.items()}
