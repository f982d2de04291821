"""Lines of the log: one for each thing, whatever stands in it."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyglass_common.logs import JsonFormatter, TextFormatter, fields

FORGED = 'a\n2026-01-01 00:00:00,000 INFO server: generation ended\x1b[2K\r\u2028key="x" \u202egnp.exe'


class Lines:
    """A logger, and what it has written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(formatter)
        self.log = logging.Logger("test")
        self.log.addHandler(handler)

    @property
    def written(self) -> str:
        return self._stream.getvalue()


@pytest.fixture(params=["text", "json"])
def lines(request: pytest.FixtureRequest) -> Lines:
    return Lines(TextFormatter("server") if request.param == "text" else JsonFormatter("server"))


def test_nothing_in_a_message_or_field_begins_a_line(lines: Lines) -> None:
    lines.log.warning("a model called %s", FORGED, extra=fields(name=FORGED, count=3))
    assert len(lines.written.splitlines()) == 1
    assert lines.written[:-1].isprintable()


def test_a_traceback_cannot_be_taken_for_a_line(lines: Lines) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        lines.log.exception("failed")
    first, *rest = lines.written.splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in rest)
    assert "ValueError" in lines.written
    assert "\x1b" not in lines.written


def test_what_json_has() -> None:
    lines = Lines(JsonFormatter("bridge"))
    lines.log.info("request ended", extra=fields(status=200, path=FORGED, missing=None))
    line = json.loads(lines.written)
    assert (line["process"], line["level"], line["message"]) == ("bridge", "INFO", "request ended")
    assert (line["status"], line["path"]) == (200, FORGED)
    assert "missing" not in line
    assert line["time"].endswith("+00:00")


def test_what_text_has() -> None:
    lines = Lines(TextFormatter("bridge"))
    lines.log.info("request ended", extra=fields(status=200, path="/v1/x y", took_ms=1.25))
    assert lines.written.endswith(' INFO bridge: request ended status=200 path="/v1/x y" took_ms=1.25\n')


@given(st.text(), st.text())
def test_any_text_is_one_printable_line(message: str, value: str) -> None:
    for formatter in (TextFormatter("server"), JsonFormatter("server")):
        lines = Lines(formatter)
        lines.log.info("%s", message, extra=fields(value=value))
        assert lines.written.count("\n") == len(lines.written.splitlines()) == 1
        assert not any(ord(character) < 32 for character in lines.written[:-1])
