"""Every benchmark runs to its end and prints its figures: each as a person runs it, in the smallest sizes.

What the figures say is not looked at beyond what must hold on any machine.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from checkpoints import IMAGE_TOKEN, SPECIAL_TOKENS, finish_tokenizer, write_prompt_files
from fidelity.ours import Ours
from spyglass_server.engine.handle.process import ENVIRONMENT
from stack import Stack, clean_environ

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
EYES = ("--tile", "28")
TIMEOUT_S = 300.0


def run(name: str, *arguments: object, environ: dict[str, str] | None = None, may_fail: bool = False) -> str:
    """Runs a benchmark, and returns what it printed. It may miss its bars where it `may_fail`.

    By default it has the engine's environment already, without which it would start a second time.
    """
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    environ = environ or clean_environ() | ENVIRONMENT
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    is_done = ended.returncode == 0 or (may_fail and ended.returncode == 1 and "| FAIL |" in ended.stdout)
    assert is_done, ended.stdout + ended.stderr
    return ended.stdout


def numbers(text: str) -> list[float]:
    """All numbers in a text, which has commas between thousands."""
    return [float(found.replace(",", "")) for found in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def rows(output: str, *names: str) -> list[list[float]]:
    """The numbers in the rows of a table with these names, each of which must be there exactly once."""
    found = []
    for name in names:
        [line] = [line for line in output.splitlines() if line.startswith(f"| {name} |")]
        found.append(numbers(line.removeprefix(f"| {name} |")))
    return found


def test_every_benchmark_is_run_here() -> None:
    scripts = {file.stem for file in FOLDER.glob("*.py") if "__main__" in file.read_text()}
    assert len(scripts) > 8
    assert {f"test_{name}" for name in scripts} <= set(globals())


def test_step(tiny_checkpoint: Path) -> None:
    sizes = ("--model", tiny_checkpoint, "--context", 32, "--times", 2)
    table = run("step", *sizes, "--rows", 1, 3, "--profile", environ=clean_environ())
    assert "Self CPU time total" in table
    for count, (decode_ms, decoded, prefill_ms, prefilled) in zip((1, 3), rows(table, "1", "3"), strict=True):
        assert 0 < decode_ms < 10_000
        assert decoded == pytest.approx(1000 * count / decode_ms, rel=0.2)
        assert prefill_ms >= 0
        assert prefilled > 0
    [both] = rows(run("step", *sizes, "--rows", 2, "--both"), "2")
    assert len(both) == 8
    assert all(number >= 0 for number in both)


def test_long_context() -> None:
    output = run("long_context", "--tokens", 512, "--times", 2)
    tokens, seconds, megabytes, times = numbers(output.splitlines()[0])
    assert tokens == 512
    assert min(seconds, megabytes) > 0
    assert 1 <= times < 1.1
    assert len(rows(output, "512")[0]) == 4


def test_memory(tiny_checkpoint: Path) -> None:
    output = run("memory", "--model", tiny_checkpoint, "--settle", 0)
    shares = rows(output, "engine", "server", "bridge", "spyglass serve")
    assert all(share > 5 for [share] in shares)
    served, weights, *_ = numbers(output.splitlines()[-1])
    assert served >= shares[0][0] + shares[1][0] - 1
    assert weights == round((tiny_checkpoint / "model.safetensors").stat().st_size / 1e6)


def test_image_latency(tiny_checkpoint: Path) -> None:
    output = run("image_latency", "--model", tiny_checkpoint, *EYES, "--count", 1)
    for new, theirs, ratio, again, plain, _ in rows(output, "28 x 28", "56 x 56"):
        assert min(new, theirs, again, plain) > 0
        assert ratio == pytest.approx(new / theirs, rel=0.15, abs=0.01)


def test_inter_token_latency(tiny_checkpoint: Path) -> None:
    sizes = ("--streams", 2, "--images", 2, "--prompt", 100, "--settle", 0.1, "--quiet", 0.4)
    output = run("inter_token_latency", "--model", tiny_checkpoint, *EYES, *sizes)
    for median, p99, longest, tokens in rows(output, "quiet", "images and a long prompt arrive"):
        assert 0 <= median <= p99 <= longest < 60_000
        assert tokens > 0
    [seen] = [line for line in output.splitlines() if line.startswith("The images were seen")]
    assert len(numbers(seen)) == 2


def test_quantization(tiny_checkpoint: Path) -> None:
    output = run("quantization", "--model", tiny_checkpoint, "--pictures", 2, "--exam", 2)
    for megabytes, logits, divergence, variation, same in rows(output, "bfloat16", "fp8", "int8"):
        assert 0 < megabytes < 1
        assert 0 < logits < 20
        assert 0 <= divergence < 1
        assert 0 <= variation <= 1
        assert 50 < same <= 100
    for way in output.split("\n\n")[1:]:
        assert len(way.splitlines()) == 2 + 10
        for count, full, small, change, _, lost, won in rows(way, "colour", "pick shape", "describe"):
            assert count == 2
            assert small - full == pytest.approx(change)
            assert won - lost == pytest.approx(count * change / 100)


def test_overhead(tmp_path: Path) -> None:
    files = write_prompt_files(tmp_path, word_tokenizer())
    output = run("overhead", "--model", files, "--streams", 3, "--step-ms", 20, "--settle", 1, "--seconds", 1)
    [speed], [events] = rows(output, "tokens a second", "SSE events a token")
    assert 0 < speed <= 1.2 * 3 * 1000 / 20
    assert 0 < events < 3
    for [spent] in rows(output, *(f"{name}, us of processor time a token" for name in ("server", "engine", "bridge"))):
        assert spent >= 0
    [median], [p99] = rows(output, "from step to client, median ms", "p99 ms")
    assert 0 < median <= p99


def test_scripted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The server that the following ones start."""
    options = ("--model", tiny_checkpoint, "--grpc", "127.0.0.1:0", "--data-dir", tmp_path, "--api-key", "k")
    command = [sys.executable, str(FOLDER / "scripted.py"), *map(str, options)]
    ended = subprocess.run(
        command, input="\n", env=clean_environ(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    ready, held = ended.stdout.splitlines()
    assert ready == "ready"
    assert json.loads(held)["KV pages"] == 0


def passed(output: str, num_bars: int) -> None:
    """Whether a table has so many bars, and all are met, but for how many seconds something takes: machines differ."""
    bars = [line for line in output.splitlines() if line.endswith(("| PASS |", "| FAIL |"))]
    assert len(bars) == num_bars, output
    assert all(line.endswith("| PASS |") or " s | at most " in line for line in bars), output


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_crashes(tiny_checkpoint: Path, database: str) -> None:
    sizes = ("--model", tiny_checkpoint, "--kills", 2, "--streams", 2, "--seconds", 0.3)
    passed(run("crashes", *sizes, "--database", database, may_fail=True), 9)


def test_fairness(tiny_checkpoint: Path) -> None:
    """Each way runs; how long anything takes is not looked at."""
    sizes = ("--seconds", 0, "--settle", 0.3, "--streams", 1, "--body-mb", 1, "--side", 100)
    output = run("fairness", "--model", tiny_checkpoint, *sizes, may_fail=True)
    for way in ("alone", "schemas", "pictures", "slow URLs", "announced images", "large bodies", "all at once"):
        for [longest, bar] in rows(output, f"{way}: first token, longest", f"{way}: gap in a stream, longest"):
            assert 0 < longest < 60_000
            assert bar >= 300
        assert rows(output, f"{way}: refused") == [[0, 0]]


def test_soak(tiny_checkpoint: Path) -> None:
    """So few requests say nothing of memory."""
    sizes = ("--requests", 120, "--concurrency", 8, "--every", 20, "--settle", 0.5)
    output = run("soak", "--model", tiny_checkpoint, *sizes, may_fail=True)
    assert output.startswith("120 requests in ")
    passed("\n".join(line for line in output.splitlines() if not line.startswith("| memory ")), 21)


def test_speculation(tiny_checkpoint: Path) -> None:
    """Whatever it saves, answers do not differ."""
    output = run("speculation", "--model", tiny_checkpoint, "--prompts", 1, "--at-once", 3, may_fail=True)
    assert rows(output, "quote: answers that differ", "json: answers that differ", "free: answers that differ")
    assert not [line for line in output.splitlines() if "differ" in line and line.endswith("FAIL |")]


def test_attention(tiny_checkpoint: Path) -> None:
    """Random weights look nowhere in particular."""
    output = run("attention", "--model", tiny_checkpoint, "--pictures", 3, may_fail=True)
    assert output.startswith("3 pictures; the colour is right in ")
    assert len([line for line in output.splitlines() if line.endswith(("PASS |", "FAIL |"))]) == 4


def test_cancels(tiny_checkpoint: Path) -> None:
    sizes = ("--requests", 60, "--seconds", 1, "--settle", 0.5)
    passed(run("cancels", "--model", tiny_checkpoint, *sizes), 17)


def test_http2_floods(tiny_checkpoint: Path) -> None:
    """The resets as many as they are meant to be: 20,000 in 5 s, beside 40 calls of others."""
    resets = ("resets by a stranger", "resets by somebody with a key")
    passed(run("http2_floods", "--model", tiny_checkpoint, "--floods", *resets), 10)
    others = ("pings", "settings", "headers without an end")
    passed(run("http2_floods", "--model", tiny_checkpoint, "--frames", 2000, "--seconds", 1, "--floods", *others), 15)


def test_overload(tiny_checkpoint: Path) -> None:
    """In both ways; how the service stands it is not looked at."""
    sizes = ("--seconds", 2, "--calibrate", 2, "--batch", 2, "--pending", 4, "--tokens", 5)
    output = run("overload", "--model", tiny_checkpoint, *sizes, may_fail=True)
    for way in ("without retries", "with 2 retries"):
        answers, others = rows(output, f"{way}: answers a second", f"{way}: other answers")
        assert min(answers) > 0
        assert others == [0, 0]


def word_tokenizer() -> Tokenizer:
    """Bytes, and each word of two letters as one token."""
    words = [("Ġ", one) for one in ascii_lowercase]
    words += [("Ġ" + one, other) for one, other in product(ascii_lowercase, repeat=2)]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, words)]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    finish_tokenizer(tokenizer, (*SPECIAL_TOKENS, IMAGE_TOKEN))
    return tokenizer


def test_throughput(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sizes = ("--concurrency", 1, 2, "--prompt", 200, "--answer", 8, "--rounds", 1, "--repeats", 1)
    output = run("throughput", "--model", tiny_checkpoint, *sizes, "--out", tmp_path, "--installed", tmp_path / "none")
    contestants = (
        "Spyglass, HTTP", "Spyglass, gRPC", "Spyglass, engine in process", "transformers generate, static batches",
    )  # fmt: skip
    speeds, delays = output.split("first token, between tokens")
    limits = rows(speeds, "limit of the machine")[0]
    assert limits[0] > 0 < limits[1]
    for found in rows(speeds, *contestants):
        speed_1, share_1, speed_2, share_2 = found
        assert min(speed_1, speed_2) > 0
        assert [share_1, share_2] == pytest.approx([speed_1 / limits[0], speed_2 / limits[1]], abs=0.01)
    for found in rows(delays, *contestants):
        assert min(found) >= 0
    results = json.loads((tmp_path / "throughput.json").read_text())["results"]
    assert set(results) == set(contestants)
    for by_concurrency in results.values():
        assert all(summary["prompt_tokens"] == 200 for [summary] in by_concurrency.values())
        assert all(1 <= summary["answer_tokens"] <= 8 for [summary] in by_concurrency.values())
        assert all(summary["first_token_ms"] > 0 for [summary] in by_concurrency.values())
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_throughput_beside_peers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    chosen = ("--contestants", "engine", "openvino", "serve", "--installed", fake_peers(tmp_path / "peers"))
    sizes = ("--concurrency", 2, "--prompt", 200, "--answer", 8, "--rounds", 2, "--repeats", 1)
    output = run("throughput", "--model", tiny_checkpoint, *sizes, *chosen, "--out", tmp_path)
    speeds, _, ratios, equal, _ = output.split("\n\n")
    contestants = ("Spyglass, engine in process", "OpenVINO GenAI, in process", "transformers serve")
    ours, theirs, _ = (speed for speed, _ in rows(speeds, *contestants))
    [[median, least, most]] = rows(ratios, "Spyglass, engine in process")
    assert least == median == most == pytest.approx(ours / theirs, abs=0.01)
    assert numbers(equal)[1] == 8
    results = json.loads((tmp_path / "throughput.json").read_text())["results"]
    assert set(results) == set(contestants)
    assert [results[name]["2"][0]["prompt_tokens"] for name in contestants] == [200, 200, 200]
    assert results["OpenVINO GenAI, in process"]["2"][0]["answer_tokens"] == 8


def test_openvino_child(tmp_path: Path) -> None:
    """So many requests run at once, and a stop token is the last of its answer."""
    prompts = [[7, 8, 9, 10, 11], [7, 2, 9], [5, 5, 5], [6, 2]]
    load = {"prompts": prompts, "concurrency": 2, "max_tokens": 4, "stop_token_ids": [2]}
    command = [str(fake_peers(tmp_path) / "bin" / "python"), str(FOLDER / "peers" / "openvino_child.py"), "model", "1"]
    ended = subprocess.run(
        command, input=2 * f"{json.dumps(load)}\n", capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    ready, *replies = ended.stdout.splitlines()
    assert ready == "ready"
    assert len(replies) == 2
    for reply in map(json.loads, replies):
        answers = reply["answers"]
        assert [answer["tokens"] for answer in answers] == [[7, 8, 9, 10], [7, 2], [5, 5, 5], [6, 2]]
        for answer in answers:
            assert len(answer["pieces"]) == len(answer["tokens"])
            assert answer["started"] < answer["pieces"][0] <= answer["pieces"][-1] <= reply["duration_s"]
        num_running = [sum(a["started"] <= b["started"] < a["pieces"][-1] for a in answers) for b in answers]
        assert num_running == [1, 2, 2, 2]


def fake_peers(folder: Path) -> Path:
    """An environment whose commands are fakes; the export leaves its folder empty."""
    fakes = Path(__file__).with_name("fake_peers")
    (folder / "bin").mkdir(parents=True)
    for name, script in (
        ("python", f'case "$1" in *export*) mkdir "$3";; *) PYTHONPATH="{fakes}" exec "{sys.executable}" "$@";; esac'),
        ("transformers", f'exec "{sys.executable}" "{fakes}/transformers_cli.py" "$@"'),
    ):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def test_first_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with Stack(tmp_path, "--model", str(tiny_checkpoint)) as stack:
        sizes = ("--side", 40, "--count", 2, "--turns", 1, "--sentences", 5)
        output = run("first_token", "--url", stack.http, *sizes, environ=stack.environ())
    _, pictures, turns = output.splitlines()
    count, side, _, median, longest, first = numbers(pictures)
    assert (count, side) == (2, 40)
    assert 0 < min(median, first) <= longest
    count, tokens, before, cached, later_tokens, after, share = numbers(turns)
    assert count == 1
    assert 200 < tokens < later_tokens
    assert 0 < cached < later_tokens
    assert share == pytest.approx(100 * after / before, rel=0.3)


def test_plain_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is compared with others has the same weights: a text has the same logits."""
    output = run("plain_model", tmp_path / "plain", "--model", tiny_checkpoint)
    assert numbers(output)[0] > 100_000
    ids = list(range(3, 60))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.inference_mode():
        theirs = plain(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(theirs, Ours.load(tiny_checkpoint).logits(ids, []), rtol=0, atol=1e-4)
    assert tokens_of(tmp_path / "plain") == tokens_of(tiny_checkpoint)


def tokens_of(folder: Path) -> Sequence[int]:
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("One. <|eot_id|>").ids
    return ids


def test_start(tiny_checkpoint: Path) -> None:
    output = run("start", "--model", tiny_checkpoint, "--times", 1)
    names = ("spyglass-server, until SERVING", "spyglass serve, until /ready", "its first token after that")
    (server, *_), (both, *_), (token, *_) = rows(output, *names)
    waited, weights, torch_s = (
        row[0] for row in rows(output, "server: waiting for the engine", "engine: weights", "engine: PyTorch")
    )
    assert 0 < waited < server
    assert 0 < torch_s < server
    assert 0 <= weights < server
    assert token > 0
    assert both > 0
    assert sum(numbers(line)[0] for line in output.splitlines() if line.startswith("| engine: ")) < server
