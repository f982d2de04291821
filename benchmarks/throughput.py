"""Compares Spyglass with others on the same weights, and with the limit of this machine: `make bench`.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --concurrency 8 --repeats 1
    python benchmarks/throughput.py --contestants http engine openvino
    python benchmarks/throughput.py --peer "llama.cpp=http://127.0.0.1:8081/v1"

Everything runs in one go on the text layers of the demo model, or of another, in float32: prompts of 64 tokens,
greedy answers of up to 64. The table has the median of --repeats; contestants take turns, so that a noisy moment hurts
all alike, and each is asked while the others idle. All get the same prompts, except over gRPC, since the server has
already cached those. OpenVINO GenAI and `transformers serve` take part if `make bench-peers` has installed them, and a
second table compares each turn of Spyglass with OpenVINO's. A peer is any running OpenAI-compatible server with the
same weights in float32 (plain_model.py). Prints Markdown tables; raw figures and a plot go into --out.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import roofline
from contestants import Contestant, InProcess, OverGrpc, OverHttp, Transformers, make_chats
from installed_peers import OpenVino, Peers, transformers_serve
from load import Summary
from processes import Spyglass, checkpoint_or_demo, run_as_engine
from spyglass_server.prompt import PromptMaker
from spyglass_server.runtime.config import load_config

ROOT = Path(__file__).resolve().parent.parent
Results = dict[str, dict[int, list[Summary]]]

HTTP, GRPC, ENGINE = "Spyglass, HTTP", "Spyglass, gRPC", "Spyglass, engine in process"
OPENVINO, SERVE, GENERATE = "OpenVINO GenAI, in process", "transformers serve", "transformers generate, static batches"
CONTESTANTS = {
    "http": HTTP, "grpc": GRPC, "engine": ENGINE, "openvino": OPENVINO, "serve": SERVE, "generate": GENERATE,
}  # fmt: skip
INSTALLED = ("openvino", "serve")
COMPARED_ANSWERS = 8


def weight_figures(folder: Path) -> tuple[int, int]:
    """Returns the bytes of the text layers and head in float32, and the head's operations per token."""
    text = load_config(folder).text
    layer = text.hidden_size * (
        2 * text.num_heads * text.head_dim + 2 * text.num_kv_heads * text.head_dim + 3 * text.intermediate_size
    )
    head = text.hidden_size * text.vocab_size
    return 4 * (text.num_self_layers * layer + head), 2 * head


@contextlib.contextmanager
def started(
    given: argparse.Namespace, installed: Peers, folder: Path, maker: PromptMaker
) -> Iterator[dict[str, Contestant]]:
    """Runs all contestants until the end of the context."""
    found: dict[str, Contestant] = {}
    with contextlib.ExitStack() as stack:
        if not {"http", "grpc"}.isdisjoint(given.contestants):
            spyglass = stack.enter_context(Spyglass.started(folder))
            found |= {HTTP: OverHttp(f"http://{spyglass.http}/v1", spyglass.key), GRPC: OverGrpc(spyglass)}
        if "engine" in given.contestants:
            found[ENGINE] = InProcess(folder)
        if "openvino" in given.contestants:
            found[OPENVINO] = stack.enter_context(OpenVino.started(installed, folder, maker))
        if "serve" in given.contestants:
            found[SERVE] = stack.enter_context(transformers_serve(installed, folder))
        if "generate" in given.contestants:
            found[GENERATE] = Transformers(folder)
        chosen = {CONTESTANTS[short] for short in given.contestants}
        peers = {name: OverHttp(url, model=given.peer_model) for name, url in given.peer}
        yield {name: one for name, one in found.items() if name in chosen} | peers


async def measure(contestants: Mapping[str, Contestant], maker: PromptMaker, given: argparse.Namespace) -> Results:
    """Measures all contestants at every concurrency, in turn."""
    results: Results = {name: {c: [] for c in given.concurrency} for name in contestants}
    for concurrency in given.concurrency:
        count = concurrency * given.rounds
        for repeat in range(given.repeats + 1):  # the first warms up
            for name, contestant in contestants.items():
                seed = 1000 * concurrency + 10 * repeat + (name == GRPC)  # HTTP's are in the server's cache
                chats = make_chats(maker, count if repeat else concurrency, given.prompt, seed)
                summary = await contestant.run(chats, concurrency, given.answer)
                if repeat:
                    results[name][concurrency].append(summary)
                    said = f"{summary.tokens_per_s:.1f} tokens/s, {summary.answer_tokens:.1f} tokens an answer"
                    print(f"{name}, {concurrency} at once: {said}", file=sys.stderr)
    return results


def table(results: Results, best: Mapping[int, float]) -> str:
    """Returns the Markdown table: tokens/s with the share of the limit, and how long parts take to arrive."""
    head = " | ".join(f"{c} at once" for c in best)
    lines = [f"| output tokens/s (share of the limit) | {head} |", "| --- |" + " ---: |" * len(best)]
    lines.append("| limit of the machine | " + " | ".join(f"{value:.0f}" for value in best.values()) + " |")
    for name, by in results.items():
        cells = [f"{speed(by[c]):.1f} ({speed(by[c]) / best[c]:.2f})" for c in best]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| first token, between tokens: median (p99) ms | {head} |", "| --- |" + " ---: |" * len(best)]
    for name, by in results.items():
        cells = []
        for c in best:
            first, first99, gap, gap99 = (
                statistics.median(getattr(summary, field) for summary in by[c])
                for field in ("first_token_ms", "first_token_p99_ms", "gap_ms", "gap_p99_ms")
            )
            cells.append(f"{first:.0f} ({first99:.0f}), {gap:.0f} ({gap99:.0f})" if gap else f"{first:.0f} for all")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """Returns the Markdown table of each Spyglass row's speed relative to OpenVINO."""
    theirs = results[OPENVINO]
    head = " | ".join(f"{c} at once" for c in theirs)
    lines = [f"| times as fast as OpenVINO: median of the turns (least to most) | {head} |"]
    lines.append("| --- |" + " ---: |" * len(theirs))
    for name in (name for name in (HTTP, GRPC, ENGINE) if name in results):
        cells = []
        for c, turns in theirs.items():
            found = [a.tokens_per_s / b.tokens_per_s for a, b in zip(results[name][c], turns, strict=True)]
            cells.append(f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equal_answers(ours: InProcess, theirs: OpenVino, maker: PromptMaker, given: argparse.Namespace) -> str:
    """Counts answers that are the same, token by token. Rounding may swap two tokens of similar probability."""
    chats = make_chats(maker, COMPARED_ANSWERS, given.prompt, seed=0)
    (mine, _), (other, _) = (one.answer(chats, len(chats), given.answer) for one in (ours, theirs))
    equal = sum(a.token_ids == b.token_ids for a, b in zip(mine, other, strict=True))
    return f"OpenVINO and Spyglass give the same tokens in {equal} of {len(chats)} answers."


def speed(summaries: Sequence[Summary]) -> float:
    """Returns the median of tokens per second."""
    return statistics.median(summary.tokens_per_s for summary in summaries)


def machine(limits: roofline.Roofline) -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "date": dt.date.today().isoformat(),
        "cpu": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "read_gb_per_s": round(limits.bytes_per_s / 1e9, 1),
        "gflop_per_s": round(limits.operations_per_s / 1e9, 1),
    }


def plot(results: Results, best: Mapping[int, float], file: Path) -> None:
    """Plots bars of each contestant's share of the limit, by concurrency."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(results)
    for number, (name, by) in enumerate(results.items()):
        places = [i + (number - (len(results) - 1) / 2) * width for i in range(len(best))]
        bars = axes.bar(places, [speed(by[c]) / best[c] for c in best], width, label=name)
        axes.bar_label(bars, [f"{speed(by[c]):.0f}" for c in best], fontsize=8)
    axes.set_xticks(range(len(best)), [f"{c} at once" for c in best])
    axes.set_ylabel("share of the machine's limit")
    axes.set_title("Output tokens a second, and their share of what the machine could do")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=130)


def peer(text: str) -> tuple[str, str]:
    """Reads NAME=URL."""
    name, _, url = text.partition("=")
    if not name or not url.startswith("http"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, url


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="requests at once (default: 1 8 32)")
    add("--prompt", type=int, default=64, help="tokens of a prompt (default: %(default)s)")
    add("--answer", type=int, default=64, help="tokens of an answer at most (default: %(default)s)")
    add("--rounds", type=int, default=2, help="requests for each one at once (default: %(default)s)")
    add("--repeats", type=int, default=3, help="measurements, of which the median counts (default: %(default)s)")
    add("--contestants", nargs="+", choices=CONTESTANTS, help="who takes part (default: all who are installed)")
    add("--installed", type=Path, default=ROOT / ".cache" / "peers", help="peers' environment (default: %(default)s)")
    add("--peer", type=peer, action="append", default=[], metavar="NAME=URL", help="a running server to compare with")
    add("--peer-model", default="SmolLM2-135M-Instruct", help="what peers call the model (default: %(default)s)")
    add("--out", type=Path, default=ROOT / ".cache" / "bench", help="where results are written (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    installed = Peers(given.installed)
    if given.contestants is None:
        given.contestants = [name for name in CONTESTANTS if installed.exist or name not in INSTALLED]
    elif not installed.exist and not set(INSTALLED).isdisjoint(given.contestants):
        sys.exit("`make bench-peers` installs OpenVINO GenAI and transformers serve, which are not there")
    run_as_engine()
    folder = checkpoint_or_demo(given.model)
    maker = PromptMaker(folder, max_image_pixels=1)
    limits = roofline.measure()
    weight_bytes, head_operations = weight_figures(folder)
    best = {
        c: limits.tokens_per_s(c, given.prompt, given.answer, weight_bytes, head_operations) for c in given.concurrency
    }
    with started(given, installed, folder, maker) as contestants:
        results = asyncio.run(measure(contestants, maker, given))
        print(table(results, best))
        ours, theirs = contestants.get(ENGINE), contestants.get(OPENVINO)
        if theirs:
            print("\n" + ratios(results))
        if isinstance(ours, InProcess) and isinstance(theirs, OpenVino):
            print("\n" + equal_answers(ours, theirs, maker, given))
    facts = machine(limits)
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    raw = {name: {c: [dataclasses.asdict(s) for s in by[c]] for c in by} for name, by in results.items()}
    (given.out / "throughput.json").write_text(json.dumps({"machine": facts, "limit": best, "results": raw}, indent=1))
    plot(results, best, given.out / "throughput.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
