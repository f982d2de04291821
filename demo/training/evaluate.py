"""Measures how well a running server answers about drawn pictures, and prints the table.

    python demo/training/evaluate.py --count 300

Start the server first: `make run` in another terminal, or `spyglass serve --model FOLDER`. The key is
taken from --api-key, SPYGLASS_API_KEY or the development key of `make run`.

The pictures are drawn from seeds that the training does not use, by two hands: the training's own, and
another one whose pictures are never trained on. Each question is asked over HTTP at temperature 0.
"""

import argparse
import asyncio
import base64
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import openai
from PIL import Image

from spyglass_training.exam.judge import BARS, KINDS, Example, accepts

ROOT = Path(__file__).resolve().parents[2]
DEVELOPMENT_KEY = ROOT / ".spyglass" / "dev-key"
HANDS = MappingProxyType({"own": "spyglass_training.exam.own_hand", "other": "spyglass_training.exam.other_hand"})
MAX_TOKENS = 48
JPEG_QUALITY = 90
PROGRESS_EVERY = 20

Hand = Callable[[str, int], Example]


@dataclass(frozen=True, slots=True)
class Task:
    """A question to ask: drawn by this hand for this kind and seed."""

    hand: str
    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a task. `error` says why there was no answer."""

    task: Task
    question: str
    expected: tuple[str, ...]
    answer: str = ""
    is_right: bool = False
    error: str | None = None


def load_hand(name: str) -> Hand:
    """The hand's `example`. Only the hands that are asked for are loaded: each needs packages of its own."""
    return cast("Hand", importlib.import_module(HANDS[name]).example)


def data_uri(picture: Image.Image, seed: int) -> str:
    """The picture as PNG, or as JPEG for every fourth seed."""
    kind, options = ("jpeg", {"quality": JPEG_QUALITY}) if seed % 4 == 3 else ("png", {})
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


async def answer_to(client: openai.AsyncOpenAI, model: str, question: str, picture_uri: str) -> str:
    completion = await client.chat.completions.create(
        model=model,
        temperature=0,
        max_tokens=MAX_TOKENS,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture_uri}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    )
    return completion.choices[0].message.content or ""


async def result_of(client: openai.AsyncOpenAI, model: str, task: Task, hand: Hand) -> Result:
    """Draws, asks and judges. A request that fails is a result, too."""
    example = await asyncio.to_thread(hand, task.kind, task.seed)
    uri = await asyncio.to_thread(data_uri, example.picture, task.seed)
    expected = tuple(sorted(example.expected))
    try:
        answer = await answer_to(client, model, example.question, uri)
    except openai.OpenAIError as error:
        return Result(task, example.question, expected, error=f"{type(error).__name__}: {error}")
    return Result(task, example.question, expected, answer, accepts(answer, example))


async def ask_all(client: openai.AsyncOpenAI, model: str, tasks: Sequence[Task], concurrency: int) -> list[Result]:
    """Asks with so many requests at once; shows on stderr how far it is."""
    hands = {name: load_hand(name) for name in {task.hand for task in tasks}}
    results: list[Result] = []
    waiting = iter(tasks)

    async def worker() -> None:
        for task in waiting:
            results.append(await result_of(client, model, task, hands[task.hand]))
            if len(results) % PROGRESS_EVERY == 0 or len(results) == len(tasks):
                right = sum(result.is_right for result in results)
                print(f"\r{len(results)} of {len(tasks)} asked, {right} right ", end="", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(tasks))):
            group.create_task(worker())
    print(file=sys.stderr)
    order = {task: place for place, task in enumerate(tasks)}
    return sorted(results, key=lambda result: order[result.task])


def percent_right(results: Iterable[Result]) -> float | None:
    """The share of right answers, None where nothing was answered. Failed requests do not count."""
    answered = [result.is_right for result in results if result.error is None]
    return 100 * sum(answered) / len(answered) if answered else None


def table(results: Sequence[Result]) -> str:
    """The Markdown table by kind and hand, with what was asked and what failed below."""
    lines = ["| kind | own pictures % | other hand % | bar | difference |", "| --- | ---: | ---: | :---: | ---: |"]
    for kind in [kind for kind in KINDS if any(result.task.kind == kind for result in results)]:
        own, other = (
            percent_right(result for result in results if result.task.kind == kind and result.task.hand == hand)
            for hand in HANDS
        )
        difference = None if own is None or other is None else other - own
        bar = str(BARS[kind]) if kind in BARS else ""
        lines.append(f"| {kind} | {_number(own)} | {_number(other)} | {bar} | {_number(difference, '+.1f')} |")
    failed = [result for result in results if result.error is not None]
    lines += ["", f"{len(results)} questions asked, {len(failed)} requests failed."]
    for reason in sorted({result.error for result in failed if result.error}):
        lines.append(f"- {sum(result.error == reason for result in failed)} x {reason}")
    return "\n".join(lines)


def _number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def save_mistakes(results: Sequence[Result], path: Path) -> None:
    mistakes = [
        {
            "hand": result.task.hand,
            "kind": result.task.kind,
            "seed": result.task.seed,
            "question": result.question,
            "answer": result.answer,
            "expected": result.expected,
            "error": result.error,
        }
        for result in results
        if not result.is_right
    ]
    path.write_text(json.dumps(mistakes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show(tasks: Sequence[Task], folder: Path) -> None:
    """Writes each picture as PNG, and all questions with what is expected as `questions.tsv`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file\tquestion\texpected"]
    for task in tasks:
        example = load_hand(task.hand)(task.kind, task.seed)
        name = f"{task.hand}-{task.kind.replace(' ', '-')}-{task.seed}.png"
        example.picture.save(folder / name)
        lines.append(f"{name}\t{example.question}\t{', '.join(sorted(example.expected))}")
    (folder / "questions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def api_key(given: str | None) -> str:
    """The key to use; a server that wants none takes any."""
    found = given or os.environ.get("SPYGLASS_API_KEY")
    if not found and DEVELOPMENT_KEY.exists():
        found = DEVELOPMENT_KEY.read_text().strip()
    return found or "none"


async def measure(arguments: argparse.Namespace, tasks: Sequence[Task]) -> list[Result]:
    """Asks the server of the arguments. Ends the script when it cannot be reached at all."""
    key = api_key(arguments.api_key)
    async with openai.AsyncOpenAI(base_url=f"{arguments.url.rstrip('/')}/v1", api_key=key, max_retries=4) as client:
        try:
            models = await client.with_options(max_retries=0).models.list()
        except openai.OpenAIError as error:
            sys.exit(f"{arguments.url} does not list its models ({error}); `make run` starts a server")
        return await ask_all(client, arguments.model or models.data[0].id, tasks, arguments.concurrency)


def kinds(text: str) -> list[str]:
    """Reads kinds with commas between them."""
    names = [name.strip() for name in text.split(",")]
    if unknown := sorted(set(names) - set(KINDS)):
        raise argparse.ArgumentTypeError(f"no such kind: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return names


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--url", default="http://127.0.0.1:8000", help="where the server is (default: %(default)s)")
    add("--model", help="the model to ask (default: the first that the server lists)")
    add("--api-key", help="the key to ask with")
    add("--count", type=positive, default=300, help="questions of each kind and hand (default: %(default)s)")
    add("--hand", choices=(*HANDS, "both"), default="both", help="who draws (default: %(default)s)")
    add("--seed", type=int, default=1_000_000, help="the first seed; the others follow (default: %(default)s)")
    add("--kinds", type=kinds, default=list(KINDS), help="kinds with commas between them (default: all)")
    add("--concurrency", type=positive, default=8, help="requests at once (default: %(default)s)")
    add("--save", type=Path, metavar="FILE", help="writes the mistakes as JSON")
    add("--show", type=Path, metavar="FOLDER", help="writes the pictures and questions there, and asks nothing")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script. The exit status is 1 when a request failed: the table is then not of all questions."""
    given = parser().parse_args(arguments)
    hands = list(HANDS) if given.hand == "both" else [given.hand]
    seeds = range(given.seed, given.seed + given.count)
    tasks = [Task(hand, kind, seed) for kind in given.kinds for hand in hands for seed in seeds]
    if given.show:
        show(tasks, given.show)
        return 0
    results = asyncio.run(measure(given, tasks))
    print(table(results))
    if given.save:
        save_mistakes(results, given.save)
    return int(any(result.error is not None for result in results))


if __name__ == "__main__":
    sys.exit(main())
