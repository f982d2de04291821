"""The terminal of a conversation: a line to type on, what is said beside the answers, and pictures.

Owns how things look and how lines are read. Knows nothing of what a line means. Needs the `chat` extra.
"""

import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from PIL import Image, ImageOps
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.text import Text
from rich_pixels import Pixels

from spyglass_client.chat.markdown import open_console
from spyglass_client.chat.writing import printable

if sys.platform != "win32":
    import termios

_PICTURE_CELLS = (40, 12)
"""The most columns and lines of a picture; a line of cells shows two of pixels."""


class Terminal:
    """Reads what is typed and shows what there is to say. `commands` tells for each one whether it takes a path."""

    def __init__(self, commands: Mapping[str, bool]) -> None:
        self.console = open_console()
        self._session: PromptSession[str] = PromptSession(
            completer=_Completer(commands),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation="  ",
            placeholder=FormattedText([("class:placeholder", "Ask something, or /help")]),
            key_bindings=_keys(),
            style=Style.from_dict({"prompt": "bold", "placeholder": "fg:ansibrightblack"}),
        )

    async def read(self, typed: str) -> str:
        """Waits for what is sent; `typed` is there already. Raises EOFError at the end and KeyboardInterrupt."""
        return await self._session.prompt_async([("", "\n"), ("class:prompt", "› ")], default=typed)

    def say(self, text: str) -> None:
        """Says something about the conversation."""
        self.console.print(Text(printable(text), "dim"))

    def complain(self, text: str) -> None:
        """Says what went wrong."""
        self.console.print(Text(printable(text), "red"))

    def show_picture(self, name: str, data: bytes) -> None:
        """Shows a picture as well as cells can, with its name and size. One that cannot be read has only a name."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                width, height, preview = _preview(data)
        except Exception:  # Pillow has no end of them; whether it is a picture is for the server to say
            self.say(f"{name}  {len(data):,} bytes")
            return
        if self.console.color_system not in (None, "standard"):
            self.console.print(Pixels.from_image(preview), end="")
        self.say(f"{name}  {width} × {height}, {len(data):,} bytes")


def _preview(data: bytes) -> tuple[int, int, Image.Image]:
    """A picture's width and height in pixels, and the picture as small as it is shown."""
    columns, lines = _PICTURE_CELLS
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture)
    width, height = upright.size
    upright.thumbnail((columns * 4, lines * 8))
    small = upright.convert("RGBA")
    small.thumbnail((columns, lines * 2))
    return width, height, small


class _Completer(Completer):
    """Completes commands, and the paths of those that take one."""

    def __init__(self, commands: Mapping[str, bool]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        command, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            for known in self._commands:
                if command and known.startswith(command):
                    yield Completion(known, -len(command))
        elif self._commands.get(command):
            yield from self._paths.get_completions(Document(rest.lstrip()), complete_event)


def _keys() -> KeyBindings:
    """Enter sends; with Alt, or as Ctrl-J, it begins a new line."""
    keys = KeyBindings()

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    in_line = has_focus(DEFAULT_BUFFER)  # and not in a search
    keys.add("enter", filter=in_line)(send)
    for line in (("escape", "enter"), ("c-j",)):
        keys.add(*line, filter=in_line)(begin_line)
    return keys


@contextmanager
def typing_ahead() -> Iterator[None]:
    """What is typed while nobody reads is not shown, and is read later as it was typed."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[0] &= ~termios.ICRNL
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
