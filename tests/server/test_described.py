"""What is kept of a checkpoint's configuration between starts."""

import json
from pathlib import Path

import pytest

from spyglass_server.runtime import described as module
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.described import described


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spyglass" / "configurations"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that transformers has read."""
    found: list[Path] = []
    read = module._read

    def noted(folder: Path) -> dict[str, object]:
        found.append(folder)
        return read(folder)

    monkeypatch.setattr(module, "_read", noted)
    return found


def test_a_second_start_finds_what_the_first_has_read(tiny_checkpoint: Path, cache: Path, reads: list[Path]) -> None:
    first = load_config(tiny_checkpoint)
    assert load_config(tiny_checkpoint) == first
    assert reads == [tiny_checkpoint]


def test_another_file_or_version_is_read_anew(
    tiny_checkpoint: Path, tmp_path: Path, cache: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((tiny_checkpoint / "config.json").read_text())
    first = described(tiny_checkpoint)
    raw["text_config"]["rms_norm_eps"] = 0.125
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert described(tmp_path)["text_config"]["rms_norm_eps"] == 0.125
    monkeypatch.setattr(module, "version", lambda name: "0.0.1")
    assert described(tiny_checkpoint) == first
    assert reads == [tiny_checkpoint, tmp_path, tiny_checkpoint]


def test_what_is_broken_or_others_may_write_is_not_used(tiny_checkpoint: Path, cache: Path, reads: list[Path]) -> None:
    first = described(tiny_checkpoint)
    [kept] = cache.iterdir()
    kept.write_text("{")
    assert described(tiny_checkpoint) == described(tiny_checkpoint) == first
    cache.chmod(0o777)
    kept.write_text('{"text_config": {}}')
    assert described(tiny_checkpoint) == first
    assert len(reads) == 3
