"""A conversation on a terminal: reads questions and slash commands; Ctrl-C stops an answer. Needs the `chat` extra."""

import asyncio
import shlex
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import FrameType

from spyglass_client.answer import Answer
from spyglass_client.chat.conversation import Conversation
from spyglass_client.chat.keyboard import is_typed_ahead, typing_ahead, whole_pastes
from spyglass_client.chat.markdown import open_writer
from spyglass_client.chat.terminal import Terminal
from spyglass_client.chat.writing import describe, summary, write_answer
from spyglass_client.errors import DeadlineError, SpyglassError
from spyglass_client.generation import AsyncGeneration
from spyglass_client.request import read_picture

_PATIENCE_S = 2.0
"""How long a stopped answer may take to end."""


@dataclass(frozen=True, slots=True)
class _Command:
    argument: str
    help: str
    run: Callable[[str], Awaitable[None]]
    _: KW_ONLY
    takes_path: bool = False


class Dialogue:
    """Reads questions until the end of the input, and shows their answers."""

    def __init__(self, conversation: Conversation, *, is_markdown: bool) -> None:
        self._conversation = conversation
        self._is_markdown = is_markdown
        self._commands = {
            "/image": _Command("FILE…", "attach pictures to the next question", self._attach_pictures, takes_path=True),
            "/file": _Command("FILE…", "attach texts to the next question", self._attach_files, takes_path=True),
            "/detach": _Command("", "take away what is attached", self._detach),
            "/system": _Command("[TEXT]", "set the system prompt, or take it away", self._set_system),
            "/retry": _Command("", "ask the last question again", self._retry),
            "/new": _Command("", "begin a new conversation", self._begin_anew),
            "/help": _Command("", "show this", self._help),
            "/exit": _Command("", "leave, as Ctrl-D does", self._leave),
        }
        self._terminal = Terminal({name: command.takes_path for name, command in self._commands.items()})
        self._typed = ""

    async def run(self, greeting: str, pictures: Iterable[str], files: Iterable[str]) -> None:
        """Runs until the end of the input. The given pictures and files are attached to the first question.

        Raises OSError or ValueError if one cannot be attached.
        """
        self._terminal.say(greeting)
        for path in pictures:
            self._attach_picture(path)
        for path in files:
            self._attach_file(path)
        with typing_ahead():
            while await self._take_next():
                pass

    async def _take_next(self) -> bool:
        """Reads a line and acts on it; returns whether there may be more."""
        try:
            typed, self._typed = self._typed, ""
            line = await self._terminal.read(typed)
            with whole_pastes():
                await self._take(line.strip())
        except KeyboardInterrupt:
            self._terminal.say("Ctrl-D leaves.")
        except EOFError:
            return False
        except (SpyglassError, OSError, ValueError) as error:
            self._terminal.complain(describe(error))
        return True

    async def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if command := self._commands.get(name):
            await command.run(rest.strip())
        elif line.startswith("/") and "/" not in line[1:].partition(" ")[0]:
            self._terminal.complain(f"There is no command {name}; /help shows them all.")
        elif line:
            await self._ask(line)

    async def _ask(self, question: str) -> None:
        """Asks; an unanswered question returns to the prompt, unless something else was typed meanwhile."""
        try:
            answer = await self._answer(self._conversation.ask(question))
        except SpyglassError:
            self._typed = "" if is_typed_ahead() else question
            if self._conversation.has_attachments:
                self._terminal.say("What is attached stays so; /detach takes it away.")
            raise
        self._conversation.keep(answer)
        self._terminal.say(summary(answer))

    async def _answer(self, generation: AsyncGeneration) -> Answer:
        """Shows an answer. Ctrl-C stops it; after `_PATIENCE_S` or a second one, it does not wait for the server.

        Raises SpyglassError.
        """

        async def write() -> Answer:
            return await write_answer(generation, open_writer(self._terminal.console, is_markdown=self._is_markdown))

        answering = asyncio.create_task(write(), name="spyglass chat answer")
        is_stopped = False

        def stop() -> None:
            nonlocal is_stopped
            if is_stopped:
                answering.cancel()
            is_stopped = True
            generation.cancel()
            asyncio.get_running_loop().call_later(_PATIENCE_S, answering.cancel)

        try:
            with _on_interrupt(stop):
                return await answering
        except asyncio.CancelledError:
            if not is_stopped:
                raise
            raise DeadlineError("the server does not end the answer") from None

    def _attach_picture(self, path: str) -> None:
        data = read_picture(path)
        self._terminal.show_picture(path, data)
        self._conversation.attach_picture(data)

    def _attach_file(self, path: str) -> None:
        self._terminal.say(f"{path}  {len(self._conversation.attach_file(path)):,} characters")

    async def _attach_pictures(self, rest: str) -> None:
        for path in _paths(rest):
            self._attach_picture(path)

    async def _attach_files(self, rest: str) -> None:
        for path in _paths(rest):
            self._attach_file(path)

    async def _detach(self, rest: str) -> None:
        self._conversation.detach()
        self._terminal.say("Nothing is attached.")

    async def _set_system(self, rest: str) -> None:
        self._conversation.system_prompt = rest or None
        self._terminal.say("The system prompt is set." if rest else "There is no system prompt.")

    async def _retry(self, rest: str) -> None:
        question = self._conversation.take_back()
        if question is None:
            raise ValueError("There is no question yet.")
        await self._ask(question)

    async def _begin_anew(self, rest: str) -> None:
        self._conversation.clear()
        self._terminal.say("A new conversation.")

    async def _help(self, rest: str) -> None:
        for name, command in self._commands.items():
            self._terminal.say(f"{name + ' ' + command.argument:16} {command.help}")
        self._terminal.say("Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer.")

    async def _leave(self, rest: str) -> None:
        raise EOFError


def _paths(text: str) -> list[str]:
    """Parses one path, spaces included, or several as a shell reads them. Raises ValueError if there is none."""
    if not text:
        raise ValueError("Which file?")
    words = [text] if Path(_at_home(text)).is_file() else shlex.split(text)
    return [_at_home(word) for word in words]


def _at_home(path: str) -> str:
    """Expands ~ in a path; returns it unchanged if there is no such user."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


@contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` on Ctrl-C."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
