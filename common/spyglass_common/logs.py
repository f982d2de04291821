"""The log of every process: one line per event, in text or JSON.

    set_up_logging("server", LogStyle(level="INFO", form="json"))
    log.info("generation ended", extra=fields(request_id=name, tokens=12))

Whatever a message or a field contains, it can neither start a new line nor send control characters to a terminal.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, NamedTuple

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:/@+%$-]+", re.ASCII)


class LogStyle(NamedTuple):
    """How to log: the minimum level, and "text" or "json"."""

    level: str
    form: str


def fields(**values: Any) -> dict[str, Any]:
    """Returns the fields that a line shows besides its message, for `extra`; None values are omitted."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def set_up_logging(process: str, style: LogStyle) -> None:
    """Makes this process log to standard error under a name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if style.form == "json" else TextFormatter(process))
    logging.basicConfig(level=style.level, handlers=[handler])


def current_style() -> LogStyle:
    """Returns how this process logs, for a process that it starts."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    return LogStyle(logging.getLevelName(root.getEffectiveLevel()), "json" if is_json else "text")


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, process, message, fields. The lines of a traceback are indented."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        for name, value in getattr(record, "fields", {}).items():
            line += f" {name}={_shown(value)}"
        return printable(line)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).splitlines())


class JsonFormatter(logging.Formatter):
    """One object per line: time (UTC), level, process, logger, message, the fields, and any traceback as one string."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def printable(text: str) -> str:
    """Escapes characters that would end a line, control a terminal or change the direction of writing."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
