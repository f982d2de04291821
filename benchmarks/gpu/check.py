"""Checks the engine on one GPU: whether it computes what it should, and how near to the device's limits.

    python benchmarks/gpu/check.py
    python benchmarks/gpu/check.py --cpu-smoke
    python benchmarks/gpu/check.py --only speed --size 90B/8

Each part runs in a process of its own, so that a lost device ends only that part, and keeps its results line by line in
results.jsonl in --out. The table and the verdicts come last, and lie there as report.md. README.md in this folder says
what the parts do and how to read them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from report import Lines, report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDERS = ("protos", "common", "server", "clients", "demo", "tests", "benchmarks")
"""Where the parts find their modules: the product's of this tree, whatever is installed."""
PARTS = ("exactness", "speed", "serving", "kernels")
MIN_S = 10.0
"""A part is not started with less time than this."""
NUM_LOG_LINES = 8
"""Of a part that failed, so many are shown."""


def environment(is_smoke: bool, site: Path) -> dict[str, str]:
    """What the parts run with: the variables of the engine's process, and the wheels that were installed in `site`."""
    sys.path.append(str(ROOT / "server"))
    from spyglass_server.engine.handle.process import ENVIRONMENT

    paths = [str(site), *(str(ROOT / folder) for folder in FOLDERS), os.environ.get("PYTHONPATH", "")]
    found = ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if is_smoke:  # shapes are too small for more threads to be of use
        found |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return found


def install_wheels(site: Path) -> None:
    """Installs the wheels that were carried along, if any."""
    wheels = sorted(map(str, (ROOT / ".whl").glob("*.whl")))
    if wheels:
        options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)


def run_part(name: str, options: Sequence[str], deadline: float, out: Path, environ: dict[str, str]) -> str | None:
    """Runs a part; returns what went wrong with it as a whole, if anything did."""
    left_s = deadline - time.time()
    if left_s < MIN_S:
        return f"not started: {max(0.0, left_s):.0f} s are left"
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    log = out / f"{name}.log"
    with log.open("wb") as file:
        try:
            ended = subprocess.run(command, env=environ, stdout=file, stderr=file, timeout=left_s, check=False)
        except subprocess.TimeoutExpired:
            return "ran past the deadline"
    if ended.returncode == 0:
        return None
    return "\n".join([f"ended with {ended.returncode}", *log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:]])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--cpu-smoke", action="store_true", help="runs the same code on tiny shapes, on a CPU")
    add("--out", type=Path, default=ROOT / ".cache" / "gpu", help="folder of the results (default: .cache/gpu)")
    add("--seconds", type=float, default=460.0, help="for all parts together (default: %(default)s)")
    size = "the model whose speed is measured; 90B/8 is 15 of the 100 layers of the 90B model (default: %(default)s)"
    add("--size", choices=("11B", "90B", "90B/8"), default="11B", help=size)
    add("--only", choices=PARTS, help="runs a single part")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    deadline = time.time() + given.seconds
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "limits.json", "report.md"):
        (out / name).unlink(missing_ok=True)
    size = "smoke" if given.cpu_smoke else given.size
    options = ["--out", str(out), "--deadline", str(deadline), "--size", size, *["--cpu-smoke"] * given.cpu_smoke]
    failures = {}
    with tempfile.TemporaryDirectory() as site:
        install_wheels(Path(site))
        environ = environment(given.cpu_smoke, Path(site))
        for name in [given.only] if given.only else PARTS:
            print(f"{name} …", flush=True)
            if failure := run_part(name, options, deadline, out, environ):
                failures[name] = failure
    text, is_good = report(Lines.read(out / "results.jsonl"), failures)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
