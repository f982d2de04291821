"""Web servers that hold images, or that nobody may connect to; each in a thread, counting who comes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


class Listener(ThreadingHTTPServer):
    """Listens on a port of loopback, under IPv4 and, where there is one, IPv6."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        """`answers` by path."""
        self.num_connections = 0
        self.answers = answers
        self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        super().__init__(("::" if self.address_family is socket.AF_INET6 else "127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        if self.address_family is socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[Any, Any]:
        self.num_connections += 1
        return super().get_request()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        try:
            self.server.answers.get(self.path.partition("?")[0], _not_found)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Says nothing."""


def _not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def body(data: bytes) -> Answer:
    """Answers with an image."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "image/png")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


def redirect(location: str) -> Answer:
    """Answers that the image is elsewhere."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def drip(request: BaseHTTPRequestHandler) -> None:
    """Answers with a byte a second, until the other side has had enough."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    for _ in range(60):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(1)


def endless(request: BaseHTTPRequestHandler) -> None:
    """Answers without an end."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


@contextmanager
def listen(**answers: Answer) -> Iterator[Listener]:
    """Listens while the context is open; `answers` by their path without the slash."""
    listener = Listener({f"/{name}": answer for name, answer in answers.items()})
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
