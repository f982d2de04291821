"""`spyglass chat`: one question from the command line, its answer as it is written."""

import argparse
import asyncio
import sys
from typing import TextIO

from spyglass_client.aio import AsyncClient
from spyglass_client.answer import Answer
from spyglass_client.generation import AsyncGeneration


def run_chat(args: argparse.Namespace) -> int:
    """Asks and prints. On a terminal the usage follows on stderr; elsewhere there is only the text.

    Raises argparse.ArgumentError without a question, and SpyglassError, OSError or ValueError when there
    is no answer.
    """
    # An event loop of its own takes Ctrl-C between two steps. Raised in a thread that waits for another it
    # may come while a lock is held, and then nothing ends.
    asyncio.run(_chat(args, _question(args.question, sys.stdin)))
    return 0


async def _chat(args: argparse.Namespace, question: str) -> None:
    async with AsyncClient(args.grpc, api_key=args.api_key) as client:
        generation = client.stream(
            question,
            images=args.image,
            system=args.system,
            model=args.model,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=args.seed,
        )
        async with generation:
            await _write(generation, sys.stdout)
        if sys.stdout.isatty():
            sys.stderr.write(_summary(generation.answer) + "\n")


async def _write(generation: AsyncGeneration, out: TextIO) -> None:
    """Writes the text as it comes; a line that has begun is ended, whatever happens."""
    begun = False
    try:
        async for chunk in generation:
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
