"""The keyboard while an answer is drawn: typed text is not echoed, and is read by the next prompt."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform != "win32":
    import termios

_MARK_PASTES, _MARK_NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"


@contextmanager
def typing_ahead() -> Iterator[None]:
    """Input typed between prompts is not echoed and is read later as typed; Ctrl-C works as usual."""
    if sys.platform == "win32" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():  # in the background: another process has the terminal
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


@contextmanager
def whole_pastes() -> Iterator[None]:
    """Text pasted between prompts is read later as one piece, however many lines it has."""
    sys.stdout.write(_MARK_PASTES)
    sys.stdout.flush()
    try:
        yield
    finally:
        sys.stdout.write(_MARK_NO_PASTES)
        sys.stdout.flush()


def is_typed_ahead() -> bool:
    """Whether typed input is still unread."""
    return sys.platform != "win32" and bool(select.select([sys.stdin], [], [], 0)[0])
