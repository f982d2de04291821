"""The bridge's door, by hand: whatever is sent, the answer is none of the server's own faults, and tells nothing of its
inside."""

import http.client
import json
import re
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bridge_setup import BridgeUnderTest, run_bridge_under_test, run_server
from fuzz.background import background

_TIMEOUT_S = 30.0
_QUIET_S = 0.2
_OUR_OWN = re.compile(r'Traceback|File "|0x[0-9a-f]{6}|/tmp/|\.py\b|site-packages|object at 0')
"""What no answer may hold."""


@dataclass(frozen=True)
class Answer:
    """The first answer on a connection."""

    status: int
    kind: str
    body: bytes


def send(port: int, data: bytes, *, is_whole: bool = True) -> Answer | None:
    """Sends bytes, and returns what is answered; None where the connection is closed without an answer.

    What is not surely a whole request is followed by the end of what is sent.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
        try:
            connection.sendall(data)
            if not is_whole and not select.select([connection], [], [], _QUIET_S)[0]:
                connection.shutdown(socket.SHUT_WR)  # it waits for more
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return Answer(answer.status, answer.headers.get_content_type(), answer.read())
        except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead):
            return None


def check(answer: Answer, sent: str) -> str:
    """Asserts what must be true of every answer, and returns what it is in a few words."""
    assert 200 <= answer.status < 500, f"{answer.status}: {answer.body[:500]!r}"
    if answer.status < 400:
        return str(answer.status)
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    found = _OUR_OWN.search(error["message"])
    assert not found or found[0] in sent, error  # what the caller has written may be quoted
    return f"{answer.status} {error['code']}"


@contextmanager
def running_bridge(**settings: Any) -> Iterator[BridgeUnderTest]:
    """A bridge in front of a service that tests script."""
    with (
        background() as loop,
        loop.entered(run_server()) as service,
        loop.entered(run_bridge_under_test(service, **settings)) as bridge,
    ):
        yield bridge
