"""A terminal with a program in it, for tests: what is typed, and what a person sees."""

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pyte

_COLUMNS, _LINES = 100, 60


class _AnsweringScreen(pyte.Screen):
    """A screen that answers programs, such as those that ask where the cursor is."""

    def __init__(self, answer: Callable[[str], None]) -> None:
        super().__init__(_COLUMNS, _LINES)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data)


class Terminal:
    """A running program and its screen."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._master = master
        self._screen = _AnsweringScreen(self.type)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = asyncio.Event()

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def colours_of(self, text: str) -> set[str]:
        """The colours of a text on the screen."""
        for number, line in enumerate(self._screen.display):
            if (column := line.find(text)) >= 0:
                return {self._screen.buffer[number][column + i].fg for i in range(len(text))}
        raise AssertionError(f"{text!r} is not on the screen:\n{self.text}")

    def backgrounds(self) -> set[str]:
        """All background colours on the screen."""
        return {self._screen.buffer[line][column].bg for line in range(_LINES) for column in range(_COLUMNS)}

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def until(self, what: str | Callable[[str], bool]) -> None:
        """Waits until the screen shows a text, or is as a function says."""
        holds = what if callable(what) else lambda text: what in text
        try:
            async with asyncio.timeout(30):
                while not holds(self.text):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"the screen never showed {what!r}:\n{self.text}") from None

    async def end(self) -> int:
        """Waits until the program has ended and returns its exit code."""
        return await asyncio.wait_for(self._process.wait(), 30)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the program has ended
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self._stream.feed(data)
        self._changed.set()


@asynccontextmanager
async def terminal(command: Sequence[str], environ: Mapping[str, str]) -> AsyncIterator[Terminal]:
    """Runs a program in a terminal of 60 lines of 100 columns that has colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    # The first terminal that a session opens is its own: only then does Ctrl-C reach the program.
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave), *command),
        env={name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES")}
        | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        start_new_session=True,
    )
    shown = Terminal(process, master)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, shown._read)
    try:
        yield shown
    finally:
        loop.remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(slave)
        os.close(master)
