"""The terminal of a conversation: the line editor, messages and pictures. Needs the `chat` extra."""

import io
import warnings
from collections.abc import Iterable, Mapping

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

_PICTURE_CELLS = (40, 12)
"""Maximum columns and lines of a picture; a line of cells shows two lines of pixels."""


class Terminal:
    """Reads input and shows messages. `commands` maps each command to whether it takes a path."""

    def __init__(self, commands: Mapping[str, bool]) -> None:
        self.console = open_console()
        self._session: PromptSession[str] = PromptSession(
            completer=_Completer(commands),
            complete_while_typing=False,
            multiline=True,
            enable_suspend=True,
            prompt_continuation="  ",
            placeholder=FormattedText([("class:placeholder", "Ask something, or /help")]),
            key_bindings=_keys(),
            style=Style.from_dict({"prompt": "bold", "placeholder": "fg:ansibrightblack"}),
        )

    async def read(self, typed: str) -> str:
        """Waits for input; the prompt starts with `typed`. Raises EOFError at the end, and KeyboardInterrupt."""
        return await self._session.prompt_async([("", "\n"), ("class:prompt", "› ")], default=typed)

    def say(self, text: str) -> None:
        """Prints a message about the conversation."""
        self.console.print(Text(printable(text), "dim"))

    def complain(self, text: str) -> None:
        """Prints an error."""
        self.console.print(Text(printable(text), "red"))

    def show_picture(self, name: str, data: bytes) -> None:
        """Shows a picture in terminal cells, with its name and size. Raises ValueError if it is not a picture."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                width, height, preview = _preview(data)
        except Exception:  # Pillow raises many kinds
            raise ValueError(f"{name} is not a readable picture") from None
        if self.console.color_system not in (None, "standard") and not self.console.no_color:
            self.console.print(Pixels.from_image(preview), end="")
        self.say(f"{name}  {width} × {height}, {len(data):,} bytes")


def _preview(data: bytes) -> tuple[int, int, Image.Image]:
    """Returns a picture's width and height in pixels, and the picture scaled down to its displayed size."""
    columns, lines = _PICTURE_CELLS
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture)
    width, height = upright.size
    upright.thumbnail((columns * 4, lines * 8))
    small = upright.convert("RGBA")
    small.thumbnail((columns, lines * 2))
    return width, height, small


class _Completer(Completer):
    """Completes commands and their paths."""

    def __init__(self, commands: Mapping[str, bool]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        command, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            for known, takes_path in self._commands.items():
                if command and known.startswith(command):
                    yield Completion(known + " " * takes_path, -len(command), display=known)
        elif self._commands.get(command):
            for found in self._paths.get_completions(Document(rest.lstrip()), complete_event):
                slash = "/" * found.display_text.endswith("/")
                yield Completion(found.text + slash, found.start_position, display=found.display)


def _keys() -> KeyBindings:
    """Enter sends, or accepts a completion; Alt-Enter and Ctrl-J begin a new line."""
    keys = KeyBindings()

    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        else:
            buffer.validate_and_handle()

    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    in_line = has_focus(DEFAULT_BUFFER)  # and not in a search
    keys.add("enter", filter=in_line)(send)
    for line in (("escape", "enter"), ("c-j",)):
        keys.add(*line, filter=in_line)(begin_line)
    return keys
