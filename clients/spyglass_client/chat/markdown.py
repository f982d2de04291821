"""Renders markdown on a terminal while it is being written. Needs the `chat` extra."""

import sys
import time
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Heading, ImageItem, Markdown, MarkdownElement, TableElement
from rich.segment import Segment, Segments
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from spyglass_client.chat.writing import PlainWriter, Writer, printable

_MAX_LINES_DRAWN = 100
"""Maximum number of lines to render as markdown on each redraw, many times a second."""


def open_console() -> Console:
    """Opens stdout for text that is shown unchanged."""
    return Console(highlight=False, markup=False, emoji=False, theme=Theme({"markdown.code": "cyan"}))


def open_writer(console: Console, *, is_markdown: bool) -> Writer:
    """Returns the writer that shows an answer on a terminal."""
    plain = not is_markdown or console.is_dumb_terminal
    return PlainWriter(sys.stdout) if plain else MarkdownWriter(console)


class MarkdownWriter:
    """Shows markdown as it arrives.

    Complete blocks are printed once. The last block is redrawn repeatedly, only its end if it is long, and printed
    once complete. So the final output does not depend on how the text was split into pieces.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending = ""
        self._is_first = True
        self._next_look_s = 0.0
        self._live = Live(console=console, get_renderable=self._draft, transient=True, refresh_per_second=12)
        self._live.start()

    def write(self, text: str) -> None:
        self._pending += printable(text)
        if "\n" in text and time.monotonic() >= self._next_look_s:
            begun_s = time.monotonic()
            self._print_complete()
            # Parsing a long block takes a while: leave most of the time for other work.
            self._next_look_s = time.monotonic() + 4 * (time.monotonic() - begun_s)

    def close(self) -> None:
        self._live.stop()
        self._print(_blocks(self._pending))

    def _print_complete(self) -> None:
        """Prints the blocks that another block follows. An unfinished line decides nothing yet."""
        whole, _, partial = self._pending.rpartition("\n")
        *complete, last = _blocks(whole)
        if complete:
            self._pending = f"{last}\n{partial}"
            self._live.refresh()  # removes what is about to be printed from the draft
            self._print(complete)

    def _print(self, blocks: Iterable[str]) -> None:
        drawn = self._drawn(blocks)
        self._console.print(_joined(drawn), end="")
        self._is_first = self._is_first and not drawn

    def _draft(self) -> RenderableType:
        """Renders the end of the unprinted text that fits the screen; a very long block is shown as written."""
        room = max(1, self._console.height - 1)
        if not self._pending.strip():
            return Spinner("dots")
        if self._pending.count("\n") > _MAX_LINES_DRAWN:
            lines = self._console.render_lines(Text(self._pending), pad=False)
        else:
            lines = self._drawn(_blocks(self._pending))
        return _joined([_certain(line, self._console.width) for line in lines[-room:]])

    def _drawn(self, blocks: Iterable[str]) -> list[list[Segment]]:
        """Renders blocks to lines, with an empty line before each block except the very first."""
        drawn: list[list[Segment]] = []
        for block in blocks:
            lines = self._console.render_lines(_Markdown(block), pad=False)
            lines = [_unpadded(line) for line in lines]
            shown = [number for number, line in enumerate(lines) if line]
            if shown and (drawn or not self._is_first):
                drawn.append([])
            if shown:
                drawn += lines[shown[0] : shown[-1] + 1]
        return drawn


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}  # all left-aligned


class _Table(TableElement):
    """Truncates nothing: text too wide for its column wraps."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            yield table


class _Image(ImageItem):
    """A picture as text: its description and its address."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(self.text, f" ({self.destination}) ", end="")


class _Markdown(Markdown):
    """Markdown as models write it: line breaks are kept, HTML is plain text, and links show their address."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "table_open": _Table,
        "image": _Image,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = _parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def _parse(text: str) -> list[Token]:
    """Parses markdown; link definitions stay text, since they may be in another block than the link."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")
    return parser.parse(text)


def _blocks(text: str) -> list[str]:
    """Splits a text where its blocks begin, into at least one piece."""
    lines = text.split("\n")
    begins = [token.map[0] for token in _parse(text) if not token.level and token.map]
    return ["\n".join(lines[begin:end]) for begin, end in pairwise([0, *begins[1:], len(lines)])]


def _unpadded(line: list[Segment]) -> list[Segment]:
    """Strips a line's trailing spaces: a terminal that draws a character wider would wrap the line."""
    kept = list(line)
    while kept and not kept[-1].text.strip() and not (kept[-1].style and kept[-1].style.bgcolor):
        kept.pop()
    if kept and not (kept[-1].style and kept[-1].style.bgcolor):
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept


def _certain(line: list[Segment], width: int) -> list[Segment]:
    """Cuts a line to fit even if a terminal gives a cell to each combining mark and each part of an emoji.

    If a line wrapped unexpectedly, part of it would remain when the draft is erased.
    """
    kept = []
    for segment in line:
        text = segment.text
        if not text.isascii():
            widths = accumulate(max(1, cell_len(character)) for character in text)
            text = text[: sum(so_far <= width for so_far in widths)]
        kept.append(Segment(text, segment.style))
        width -= sum(max(1, cell_len(character)) for character in text)
    return kept


def _joined(lines: list[list[Segment]]) -> Segments:
    return Segments(segment for line in lines for segment in (*line, Segment.line()))
