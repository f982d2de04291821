"""The check for GPUs, on a CPU: every stage in tiny shapes, and what becomes of stages that fail."""

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import clean_environ

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
TIMEOUT_S = 300.0


def run(*command: object, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs Python."""
    words = [sys.executable, *map(str, command)]
    environ = clean_environ() | (environ or {})
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def module(name: str) -> dict[str, Any]:
    """What a module of the check defines."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_every_stage_is_exact_and_has_its_figures(tmp_path: Path) -> None:
    ended = run(FOLDER / "check.py", "--cpu-smoke", "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith((tmp_path / "report.md").read_text() + "\n")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    verdicts = [line for line in lines if line["what"] == "exactness"]
    assert {line["case"] for line in verdicts} == {
        "float32 on the CPU", "float32, graphs on", "bfloat16, graphs off", "fp8, graphs off", "kernels"
    }  # fmt: skip
    assert f"exactness: {len(verdicts)} met, 0 missed" in ended.stdout
    timed = {line["what"]: line for line in lines if "ms" in line}
    assert set(timed) == {
        "decode attention", "prefill attention", "add_rms_norm", "silu_mul", "rotate_and_store", "sample_tokens",
        "fp8 product", "fp8 weight product", "bfloat16 product", "decode", "decode of unlike lengths", "prefill",
        "longest prefill of a new length", "image", "first token about an image", "sampling", "engine",
        "serving over gRPC", "serving over HTTP",
    }  # fmt: skip
    for what, line in timed.items():
        assert line["ms"] > 0
        assert f"| {what} | {line['case']} | {line['ms']} | {line.get('limit_ms', '')} |" in ended.stdout
    for way in ("engine", "serving over gRPC", "serving over HTTP"):
        assert min(timed[way]["tokens_per_s"], timed[way]["first_token_ms"]) > 0
        assert timed[way]["answer_tokens"] == 4
    [trace] = [line for line in lines if line["what"] == "trace"]
    assert trace["kernels"] >= len(trace["longest"]) > 0


FAILING = """
import sys
from check import main
from stages import Stage

STAGES = (
    Stage(name="dying", module="dying"),
    Stage(name="hanging", module="hanging", seconds=6),
    Stage(name="limits", module="limits"),
)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], STAGES))
"""
DYING = "import os, sys\ndef run(run):\n    print('the end', file=sys.stderr, flush=True)\n    os._exit(3)\n"
HANGING = """
import pathlib, subprocess
def run(run):
    child = subprocess.Popen(["sleep", "1000"])
    (run.out / "child").write_text(str(child.pid))
    child.wait()
"""


@pytest.mark.parametrize("how", [(), ("--fresh",)], ids=["copied", "fresh"])
def test_a_stage_that_dies_or_hangs_costs_itself_alone(tmp_path: Path, how: tuple[str, ...]) -> None:
    for name, text in (("failing", FAILING), ("dying", DYING), ("hanging", HANGING)):
        (tmp_path / f"{name}.py").write_text(text)
    environ = {"PYTHONPATH": f"{FOLDER}:{tmp_path}"}
    ended = run(tmp_path / "failing.py", "--cpu-smoke", *how, "--out", tmp_path, environ=environ)
    assert ended.returncode == 1, ended.stderr
    assert "- FAILED dying ended with 3\nthe end\n" in ended.stdout
    assert "- FAILED hanging took longer than 6 s" in ended.stdout
    assert "- limits (limits): copy_bytes_per_s " in ended.stdout
    child = (tmp_path / "child").read_text()
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_stage_is_not_started_without_time(tmp_path: Path) -> None:
    ended = run(FOLDER / "check.py", "--cpu-smoke", "--only", "kernels", "trace", "--seconds", 0, "--out", tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert re.findall("FAILED (.*)", ended.stdout) == [
        f"{name} not started: 0 s are left" for name in ("kernels", "trace")
    ]


@pytest.mark.parametrize("ok", [True, False])
def test_the_check_fails_when_something_is_not_exact(ok: bool) -> None:
    line = {"what": "exactness", "stage": "kernels", "case": "float32", "of": "logits", "error": 0.1, "bar": 0.2}
    report = module("report")
    text, is_good = report["report"](report["Lines"]((line | {"ok": True}, line | {"ok": ok})), {})
    assert is_good is ok
    missed = "\n- MISSED float32: logits: 0.1, at most 0.2" * (not ok)
    assert f"exactness: {1 + ok} met, {1 - ok} missed{missed}\n" in text


@pytest.mark.parametrize(("ratio", "verdict"), [(0.7, "met"), (0.69, "missed")])
def test_bars_of_speed_are_only_told(ratio: float, verdict: str) -> None:
    figures = {"size": "11B", "weights": "bfloat16", "rows": 1, "context": 1024, "num_seeing": 0}
    line = {"what": "decode", "stage": "decode", "case": "one row", "ms": 6.5, "ratio": ratio, **figures}
    report = module("report")
    text, is_good = report["report"](report["Lines"]((line,)), {})
    assert f"- {verdict}: ratio of decode, 11B in bfloat16, 1 rows of 1024: {ratio}, at least 0.7\n" in text
    assert is_good


def closure(names: set[str]) -> Iterator[str]:
    """Distributions, and all that they need."""
    waiting, known = set(names), set[str]()
    while waiting:
        name = waiting.pop()
        known.add(name)
        yield name
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for other platforms
            continue
        found = {re.split(r"[^\w.-]", need)[0].lower().replace("_", "-") for need in needs if "extra ==" not in need}
        waiting |= found - known


IMPORTING = """
import importlib.machinery, importlib.metadata, pathlib, sys
distributions = importlib.metadata.packages_distributions()
there = set(sys.argv[1].split())

class WithoutTheRest(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        of = distributions.get(name)
        if of is None or there & {one.lower().replace("_", "-") for one in of}:
            return super().find_spec(name, *more)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutTheRest
import check, stages
check.set_environment(pathlib.Path(), pathlib.Path(), is_smoke=True)
for name in (*stages.PRELOADED, *(stage.module for stage in stages.STAGES), *sys.argv[2:]):
    importlib.import_module(name)
"""


def test_stages_need_no_more_than_is_carried() -> None:
    """Beside that a bare machine has torch, Triton with it, and transformers."""
    wheels = module("wheels")
    carried = {wheels["_name"](one) for one in wheels["requirements"]()}
    there = {*closure({"torch", "triton", "transformers"} | carried), *wheels["ALONE"]}
    programs = ("spyglass_server.cli", "spyglass_server.runtime.launch", "spyglass_bridge.cli")
    environ = {"PYTHONPATH": str(FOLDER)}
    ended = run("-c", IMPORTING, " ".join(there), *programs, environ=environ)
    assert ended.returncode == 0, ended.stderr
    refused = run("-c", IMPORTING, " ".join(there - {"grpcio", "grpcio-tools"}), *programs, environ=environ)
    assert "ModuleNotFoundError: No module named 'grpc'" in refused.stderr


def test_wheels_are_listed() -> None:
    listed = run(FOLDER / "wheels.py", "--list").stdout.split()
    assert {"accelerate", "grpcio>=1.85.1", "pydantic>=2.12"} <= set(listed)
    assert not [one for one in listed if one.startswith(("torch", "transformers", "numpy"))]


def test_wheels_are_unpacked_where_the_machine_lacks_them(tmp_path: Path) -> None:
    there = importlib.metadata.version("numpy")
    wheels = []
    for name in (
        "not_there-1.0-py3-none-any",
        f"numpy-{there}-py3-none-any",
        "numpy-1000.0-py3-none-any",
        "for_others-1.0-cp27-none-any",
    ):
        wheels.append(tmp_path / f"{name}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as file:
            file.writestr(f"{name}.py", "")
    unpacked = module("wheels")["unpack"](wheels, tmp_path / "found")
    assert unpacked == ["not-there", "numpy"]
    assert {file.name for file in (tmp_path / "found").iterdir()} == {
        "not_there-1.0-py3-none-any.py", "numpy-1000.0-py3-none-any.py"
    }  # fmt: skip
