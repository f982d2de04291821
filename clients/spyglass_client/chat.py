"""`spyglass chat`: one question from the command line, its answer as it is written."""

import argparse
import sys
from typing import TextIO

from spyglass_client.answer import Answer
from spyglass_client.sync import Client, Generation


def run_chat(args: argparse.Namespace) -> int:
    """Asks and prints. On a terminal the usage follows on stderr; elsewhere there is only the text.

    Raises argparse.ArgumentError without a question, and SpyglassError, OSError or ValueError when there
    is no answer.
    """
    question = _question(args.question, sys.stdin)
    with Client(args.grpc, api_key=args.api_key) as client:
        generation = client.stream(
            question,
            images=args.image,
            system=args.system,
            model=args.model,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=args.seed,
        )
        with generation:
            _write(generation, sys.stdout)
        if sys.stdout.isatty():
            sys.stderr.write(_summary(generation.answer) + "\n")
    return 0


def _write(generation: Generation, out: TextIO) -> None:
    """Writes the text as it comes; a line that has begun is ended, whatever happens."""
    begun = False
    try:
        for chunk in generation:
            begun = True
            out.write(chunk.text)
            out.flush()
    finally:
        if begun:
            out.write("\n")
            out.flush()


def _question(argument: str | None, stdin: TextIO) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and stdin.isatty():
        raise argparse.ArgumentError(None, 'give a question, such as: spyglass chat "Hello!"')
    question = stdin.read().strip()
    if not question:
        raise ValueError("the question on stdin is empty")
    return question


def _summary(answer: Answer) -> str:
    usage = answer.usage
    cut = " (cut off at its longest)" if answer.finish_reason == "length" else ""
    return f"[{usage.prompt_tokens} + {usage.completion_tokens} tokens, ${usage.estimated_cost:.6f}{cut}]"
