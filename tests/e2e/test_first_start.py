"""Starting: the key that is made, and the ways in which a start goes wrong."""

import os
import subprocess
from pathlib import Path

import pytest

from spyglass_client import AuthenticationError
from stack import Stack, clean_environ, free_ports, serve_command

pytestmark = pytest.mark.slow

SHOWN = "API key, shown only this once: "


def shown_key(stack: Stack) -> str | None:
    """The key among the lines that it has printed."""
    return next((line.partition(SHOWN)[2] for line in stack.lines if SHOWN in line), None)


def serve(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a `spyglass serve` that is expected to end by itself."""
    return subprocess.run(
        serve_command(*options), env=clean_environ() | environ, capture_output=True, text=True, timeout=60
    )


def test_a_key_is_made_on_the_first_start_and_shown_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data_dir, options = tmp_path / "data", ("--model", str(tiny_checkpoint))
    with Stack(data_dir, *options, key=None) as stack:
        key = shown_key(stack)
        assert key is not None
        stack.key = key
        with stack.client() as client:
            assert client.generate("Hello!", max_tokens=4).token_ids
        assert stack.stop() == 0
        assert key not in stack.log_file.read_text()
    kept = [file.read_bytes() for file in data_dir.rglob("*") if file.is_file()]
    assert not any(key.encode() in content for content in kept)
    with Stack(data_dir, *options, key=None) as stack:
        assert shown_key(stack) is None
        with stack.client() as client, pytest.raises(AuthenticationError):
            client.models()
        stack.key = key
        with stack.client() as client:
            assert client.usage().generations == 1


def test_the_missing_package_of_the_demo_is_named_in_one_line(tmp_path: Path) -> None:
    module = tmp_path / "spyglass_demo.py"
    module.write_text("raise ModuleNotFoundError('as if not installed', name='spyglass_demo')")
    http, grpc = free_ports(2)
    options = ("--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}", "--data-dir", str(tmp_path / "data"))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = serve("--model", "demo", *options, PYTHONPATH=path)
    assert ended.returncode == 1
    [complaint] = [line for line in ended.stderr.splitlines() if line.startswith("spyglass-server: ")]
    assert "`pip install spyglass-demo`, or `pip install ./demo` from a checkout" in complaint
    assert "Traceback" not in ended.stderr


def test_usage_can_be_read_as_json(tiny: Stack) -> None:
    with tiny.client() as client:
        client.generate("Hello!", max_tokens=4, request_id="a-name-to-find")
    printed = subprocess.run(
        [*serve_command()[:-1], "usage", "--json"], env=tiny.environ(), capture_output=True, text=True, check=True
    )
    assert '"a-name-to-find"' in printed.stdout


@pytest.mark.parametrize("kind", ["missing", "empty", "not a checkpoint", "half"])
def test_a_bad_checkpoint_is_named_in_one_line(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "not a checkpoint":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    if kind == "half":
        for file in tiny_checkpoint.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
    http, grpc = free_ports(2)
    addresses = ("--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}")
    ended = serve("--model", str(folder), "--data-dir", str(tmp_path / "data"), *addresses)
    assert ended.returncode == 1
    [complaint] = [line for line in ended.stderr.splitlines() if line.startswith("spyglass-server: ")]
    assert str(folder) in complaint
    assert "Traceback" not in ended.stderr


def test_wrong_options_and_variables_are_named() -> None:
    unknown = serve("--nonsense", "3")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "--nonsense" in unknown.stderr
    bad = serve(SPYGLASS_MAX_BATCH="zero")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "SPYGLASS_MAX_BATCH: 'zero' is not a whole number above 0" in bad.stderr
