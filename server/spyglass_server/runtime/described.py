"""A checkpoint's config.json as transformers reads it: in its newest form, with all defaults.

Importing transformers takes a second or more at each start, so its result is kept in the user's cache, keyed by a
digest of the file and of transformers' version.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spyglass_server.runtime.cache_folder import cache_folder

log = logging.getLogger(__name__)


def described(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The configuration of a Mllama checkpoint, with a dictionary for each part.

    Raises:
        ValueError: transformers cannot read it.
        OSError: the file cannot be read.
    """
    data = (folder / "config.json").read_bytes()
    digest = hashlib.sha256(b"\0".join((version("transformers").encode(), data))).hexdigest()
    try:
        kept = cache_folder("configurations", environ) / f"{digest[:32]}.json"
    except (OSError, RuntimeError) as error:
        log.info("the configuration is read at every start: %s", error)
        return _read(folder)
    with suppress(OSError, ValueError):  # no cached file yet, or a broken one
        known: dict[str, Any] = json.loads(kept.read_text())
        return known
    found = _read(folder)
    try:
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
            json.dump(found, file)
        Path(file.name).replace(kept)  # atomic for concurrent readers and writers
    except OSError as error:
        log.info("the configuration cannot be kept: %s", error)
    return found


def _read(folder: Path) -> dict[str, Any]:
    from transformers import MllamaConfig

    config = MllamaConfig.from_pretrained(folder, local_files_only=True)
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found
