"""Compares Spyglass with others on the same weights, and with what this machine could do at best: `make bench`.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --concurrency 8 --repeats 1
    python benchmarks/throughput.py --peer "llama.cpp=http://127.0.0.1:8081/v1"

Everything runs in one go on the text layers of the demo model, or of another, in float32: prompts of 64 tokens,
answers of up to 64. The table has the median of --repeats; contestants take turns, so that a noisy moment hurts all
alike. A peer is any OpenAI-compatible server that runs already, with the same weights in float32 (plain_model.py); each
is asked while the others idle. Prints a Markdown table and writes it with the raw figures and a plot into --out.
"""

import argparse
import asyncio
import dataclasses
import datetime as dt
import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import roofline
from contestants import Contestant, InProcess, OverGrpc, OverHttp, Transformers, make_chats
from load import Summary
from processes import Spyglass, checkpoint_or_demo, run_as_engine
from spyglass_server.prompt import PromptMaker
from spyglass_server.runtime.config import load_config

ROOT = Path(__file__).resolve().parent.parent
Results = dict[str, dict[int, list[Summary]]]


def weight_figures(folder: Path) -> tuple[int, int]:
    """Bytes of the text layers and the head in float32, and the operations that a token takes in the head."""
    text = load_config(folder).text
    layer = text.hidden_size * (
        2 * text.num_heads * text.head_dim + 2 * text.num_kv_heads * text.head_dim + 3 * text.intermediate_size
    )
    head = text.hidden_size * text.vocab_size
    return 4 * (text.num_self_layers * layer + head), 2 * head


async def measure(contestants: Mapping[str, Contestant], maker: PromptMaker, given: argparse.Namespace) -> Results:
    """All contestants at every concurrency, by turns."""
    results: Results = {name: {c: [] for c in given.concurrency} for name in contestants}
    for concurrency in given.concurrency:
        count = concurrency * given.rounds
        for repeat in range(given.repeats + 1):  # the first warms up
            for number, (name, contestant) in enumerate(contestants.items()):
                seed = 1000 * concurrency + 10 * repeat + number
                chats = make_chats(maker, count if repeat else concurrency, given.prompt, seed)
                summary = await contestant.run(chats, concurrency, given.answer)
                if repeat:
                    results[name][concurrency].append(summary)
                    print(f"{name}, {concurrency} at once: {summary.tokens_per_s:.1f} tokens/s", file=sys.stderr)
    return results


def table(results: Results, best: Mapping[int, float]) -> str:
    """The Markdown table: tokens/s with the share of the limit, and how long parts take to come."""
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


def speed(summaries: Sequence[Summary]) -> float:
    """The median of tokens in a second."""
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
    """Bars of each contestant's share of the limit, by concurrency."""
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
    add("--peer", type=peer, action="append", default=[], metavar="NAME=URL", help="a running server to compare with")
    add("--peer-model", default="SmolLM2-135M-Instruct", help="what peers call the model (default: %(default)s)")
    add("--out", type=Path, default=ROOT / ".cache" / "bench", help="where results are written (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    folder = checkpoint_or_demo(given.model)
    maker = PromptMaker(folder, max_image_pixels=1)
    limits = roofline.measure()
    weight_bytes, head_operations = weight_figures(folder)
    best = {
        c: limits.tokens_per_s(c, given.prompt, given.answer, weight_bytes, head_operations) for c in given.concurrency
    }
    with Spyglass.started(folder) as spyglass:
        contestants: dict[str, Contestant] = {
            "Spyglass, HTTP": OverHttp(f"http://{spyglass.http}/v1", spyglass.key),
            "Spyglass, gRPC": OverGrpc(spyglass),
            "Spyglass, engine in process": InProcess(folder),
            "transformers generate, static batches": Transformers(folder),
        }
        contestants |= {name: OverHttp(url, model=given.peer_model) for name, url in given.peer}
        results = asyncio.run(measure(contestants, maker, given))
    print(table(results, best))
    facts = machine(limits)
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    raw = {name: {c: [dataclasses.asdict(s) for s in by[c]] for c in by} for name, by in results.items()}
    (given.out / "throughput.json").write_text(json.dumps({"machine": facts, "limit": best, "results": raw}, indent=1))
    plot(results, best, given.out / "throughput.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
