"""`spyglass chat`: one question and its answer, or, without a question on a terminal, a conversation.

Conversations and rendered markdown need the `chat` extra.
"""

import argparse
import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from spyglass_client.aio import AsyncClient
from spyglass_client.answer import Answer
from spyglass_client.attention import draw_attention
from spyglass_client.chat.conversation import Conversation
from spyglass_client.chat.keyboard import typing_ahead
from spyglass_client.chat.writing import PlainWriter, Writer, summary, write_answer
from spyglass_client.request import Options, read_picture
from spyglass_client.target import tls_of

_EXTRA = ("rich", "rich_pixels", "prompt_toolkit")


def run_chat(args: argparse.Namespace) -> int:
    """Asks and prints. On a terminal the usage follows on stderr; elsewhere only the text is printed.

    Raises argparse.ArgumentError if there is no question and a conversation is impossible, and SpyglassError, OSError
    or ValueError if there is no answer.
    """
    # An event loop in this thread handles Ctrl-C between two steps. In a thread that waits for another, Ctrl-C
    # could be raised while a lock is held, and the program would hang.
    asyncio.run(_chat(args, _question(args.question, sys.stdin, sys.stdout)))
    return 0


async def _chat(args: argparse.Namespace, question: str | None) -> None:
    options = Options(
        model=args.model,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        json_schema=args.json_schema,
        image_attention=True if args.show_attention else None,
    )
    if args.show_attention and not (args.image and question is not None):
        raise argparse.ArgumentError(None, "--show-attention needs a question and an --image")
    async with AsyncClient(args.grpc, api_key=args.api_key, tls=tls_of(args)) as client:
        conversation = Conversation(client, options, args.system)
        if question is None:
            await _talk(args, conversation, client)
        else:
            await _ask(args, conversation, question)


async def _talk(args: argparse.Namespace, conversation: Conversation, client: AsyncClient) -> None:
    from spyglass_client.chat.dialogue import Dialogue

    model = args.model or (await client.models())[0].id
    dialogue = Dialogue(conversation, is_markdown=args.json_schema is None)
    await dialogue.run(f"{model} at {client.target}", args.image, args.file)


async def _ask(args: argparse.Namespace, conversation: Conversation, question: str) -> None:
    pictures = [read_picture(path) for path in args.image]
    for picture in pictures:
        conversation.attach_picture(picture)
    for path in args.file:
        conversation.attach_file(path)
    with typing_ahead():
        answer = await write_answer(conversation.ask(question), _writer(args, sys.stdout))
    if args.show_attention:
        for path in write_attention(args.show_attention, pictures, answer):
            sys.stderr.write(f"where the model looked: {path}\n")
    if answer.finish_reason == "length" and args.json_schema is not None:
        raise ValueError("the answer is cut off before it has its shape: --max-tokens is too small")
    if sys.stdout.isatty():
        sys.stderr.write(summary(answer) + "\n")
    elif answer.finish_reason == "length":
        sys.stderr.write("spyglass: the answer is cut off at its longest\n")


def write_attention(target: str, pictures: Sequence[bytes], answer: Answer) -> list[Path]:
    """Draws the answer's attention on each picture and returns the paths: `target`, numbered if there are several.

    Raises ValueError if it cannot be drawn, and OSError if it cannot be written.
    """
    paths = []
    for number, data in enumerate(pictures):
        path = Path(target)
        if len(pictures) > 1:
            path = path.with_stem(f"{path.stem}-{number + 1}")
        try:
            drawn = draw_attention(data, answer.image_grids[number], answer.choices[0].attention, number)
        except ImportError:
            raise ValueError("--show-attention needs: pip install 'spyglass[chat]'") from None
        path.write_bytes(drawn)
        paths.append(path)
    return paths


def _writer(args: argparse.Namespace, out: TextIO) -> Writer:
    if not out.isatty() or not _has_extra():
        return PlainWriter(out)
    from spyglass_client.chat.markdown import open_console, open_writer

    return open_writer(open_console(), is_markdown=args.json_schema is None)


def _question(argument: str | None, stdin: TextIO, stdout: TextIO) -> str | None:
    """Returns the question, or None for a conversation. Raises ValueError for an empty question."""
    if argument is not None and argument != "-":
        return _checked(argument, "the question")
    if argument is None and stdin.isatty():
        if not stdout.isatty():
            raise argparse.ArgumentError(None, 'give a question, such as: spyglass chat "Hello!"')
        if not _has_extra():
            raise argparse.ArgumentError(None, "a conversation needs: pip install 'spyglass[chat]'; or give a question")
        return None
    return _checked(stdin.read().strip(), "the question on stdin")


def _checked(question: str, name: str) -> str:
    if not question.strip():
        raise ValueError(f"{name} is empty")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    return question


def _has_extra() -> bool:
    return all(importlib.util.find_spec(name) for name in _EXTRA)
