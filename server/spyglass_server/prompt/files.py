"""Reads a checkpoint's files for prompts, in the versions in circulation: tokenizer, chat template, preprocessor."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyglass_server.images import ImageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFiles:
    """A checkpoint's settings for prompts. `chat_template` is None if it has none."""

    tokenizer_path: Path
    chat_template: str | None
    special_tokens: dict[str, str]
    stop_token_ids: frozenset[int]
    vocab_size: int
    image_token_id: int
    image_spec: ImageSpec


def read_prompt_files(folder: Path) -> PromptFiles:
    """Reads a checkpoint folder.

    Raises:
        ValueError: it is not a Mllama checkpoint, or a file is invalid.
        OSError: a file cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint folder: it has no config.json")
    config = _json(folder / "config.json")
    if config.get("model_type") != "mllama":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}; only 'mllama' is served")
    generation = _json(folder / "generation_config.json", optional=True)
    tokenizer = _json(folder / "tokenizer_config.json", optional=True)
    text, vision = config["text_config"], config["vision_config"]
    return PromptFiles(
        tokenizer_path=folder / "tokenizer.json",
        chat_template=_chat_template(folder, tokenizer),
        special_tokens=_special_tokens(tokenizer),
        stop_token_ids=frozenset(_ids(generation.get("eos_token_id", text.get("eos_token_id")))),
        vocab_size=text.get("vocab_size", 128256),
        image_token_id=config.get("image_token_index", 128256),
        image_spec=ImageSpec(tile_size=vision.get("image_size", 448), max_tiles=vision.get("max_num_tiles", 4)),
    )


def _json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a JSON object")
    return found


def _chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """Reads the template from its own file, an older JSON file, or the tokenizer's configuration."""
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text("utf-8")
    found = _json(folder / "chat_template.json", optional=True).get("chat_template") or tokenizer.get("chat_template")
    if isinstance(found, list):  # several named ones
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return found


def _special_tokens(tokenizer: dict[str, Any]) -> dict[str, str]:
    """Returns the tokens that templates refer to by name, such as bos_token."""
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    found = {name: tokenizer.get(name) for name in names}
    return {
        name: token["content"] if isinstance(token, dict) else str(token)
        for name, token in found.items()
        if token is not None
    }


def _ids(value: int | Iterable[int] | None) -> Iterable[int]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else value
