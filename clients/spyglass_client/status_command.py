"""`spyglass status`: shows the server's status, once or redrawn until Ctrl-C."""

import argparse
import sys
import time
from collections import deque
from datetime import UTC, datetime

from spyglass_client.chat.writing import describe, printable
from spyglass_client.errors import SpyglassError
from spyglass_client.status import ServerStatus
from spyglass_client.sync import Client
from spyglass_client.tables import as_json
from spyglass_client.target import tls_of

_WIDTH = 60
"""Number of past samples in the curve of tokens per second."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def run_status(args: argparse.Namespace) -> int:
    """Prints the server's status. Raises SpyglassError; --watch waits for a server that does not answer."""
    with Client(args.grpc, api_key=args.api_key, tls=tls_of(args)) as client:
        if not args.watch:
            status = client.status()
            sys.stdout.write(as_json(status) if args.json else report(status))
            return 0
        if args.json:
            raise argparse.ArgumentError(None, "--watch is for people, --json for programs")
        _watch(client, args.interval)
    return 0


def _watch(client: Client, interval_s: float) -> None:
    """Draws until Ctrl-C; on a terminal in place, elsewhere one report after another."""
    is_terminal = sys.stdout.isatty()
    past: deque[float] = deque(maxlen=_WIDTH)
    if is_terminal:
        sys.stdout.write(_OTHER_SCREEN)
    try:
        while True:
            try:
                status = client.status()
                past.append(status.output_tokens_per_second)
                text = report(status) + f"\n{curve(past)}\n"
            except SpyglassError as error:
                past.append(0.0)
                text = f"{printable(describe(error))}\n"
            if is_terminal:
                text = _HOME + text.replace("\n", f"{_CLEAR_LINE}\n") + _CLEAR_BELOW
            sys.stdout.write(text)
            sys.stdout.flush()
            time.sleep(interval_s)
    finally:
        if is_terminal:
            sys.stdout.write(_OWN_SCREEN)
            sys.stdout.flush()


def report(status: ServerStatus) -> str:
    """Formats a server's status in a few lines."""
    cache = status.cache
    computed = ", ".join(word for word in (status.device, status.dtype, status.quantization) if word and word != "none")
    names = printable(", ".join(status.models)) or "no model yet"
    lines = [
        f"{names}{f' on {computed}' if computed else ''}: {status.state}, up {_span(status.started)}",
        "",
        f"generations   {status.running} running, {status.waiting} waiting, {status.max_pending} at most",
        f"tokens        {status.output_tokens_per_second:.1f} a second{_ages(status)}",
        f"KV cache      {_percent(cache.kv_cache_usage)} held, {_percent(cache.prefix_hit_rate)} of prompts found"
        + (f", {cache.preemptions} preemptions" if cache.preemptions else ""),
        f"image cache   {_percent(cache.image_cache_usage)} held, {_percent(cache.image_hit_rate)} of images found",
        f"engine        {status.engine_restarts} restarts",
    ]
    if status.latest_failures:
        lines += ["", "latest failures (UTC)"]
    for failure in reversed(status.latest_failures):
        lines.append(f"  {failure.time:%Y-%m-%d %H:%M:%S}  {failure.code}  {printable(failure.reason)}")
    return "\n".join(lines) + "\n"


def curve(past: "deque[float]") -> str:
    """Draws tokens per second over time, the newest at the right."""
    most = max(past, default=0.0)
    if not most:
        return "tokens/s"
    heights = [round(value / most * (len(_BLOCKS) - 1)) for value in past]
    return f"tokens/s {''.join(_BLOCKS[height] for height in heights)} at most {most:.1f}"


def _ages(status: ServerStatus) -> str:
    ages = ((status.last_step_age_s, "step"), (status.last_token_age_s, "token"))
    return "".join(f", last {name} {age:.1f} s ago" for age, name in ages if age is not None)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def _span(since: datetime) -> str:
    """Formats the time since then, in its two largest units."""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {name}"
    return f"{seconds} s"
