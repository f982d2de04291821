"""The file of a Unix socket: who may connect, whose it is, and when it goes."""

import os
import socket
import stat
from pathlib import Path

import pytest

from spyglass_common.unix_socket import SocketFile


def listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_its_permissions_are_those_asked_for_from_the_beginning(tmp_path: Path, mode: int, umask: int) -> None:
    path = tmp_path / "socket"
    seen: list[int] = []

    def look_and_listen(hidden: str) -> socket.socket:
        assert not path.exists()  # nobody finds it yet
        listener = listen(hidden)
        seen.append(stat.S_IMODE(Path(hidden).stat().st_mode))
        return listener

    before = os.umask(umask)
    try:
        file = SocketFile(str(path), mode)
        with file.bind(look_and_listen), socket.socket(socket.AF_UNIX) as caller:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert seen == [0o700]
            caller.connect(str(path))
            assert os.umask(umask) == umask
            file.remove()
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_ones_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listen(str(path)).close()
    assert path.exists()
    with SocketFile(str(path), 0o600).bind(listen), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(str(path)) as living:
        with pytest.raises(OSError, match="another program listens at unix:"):
            SocketFile(str(path), 0o600).bind(listen)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            living.accept()[0].close()  # the look of the one that was refused
            living.accept()[0].close()
    assert [each.name for each in tmp_path.iterdir()] == ["socket"]


def test_a_living_one_that_is_too_busy_to_take_calls_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another program listens"):
            SocketFile(str(path), 0o600).bind(listen)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="is not a socket"):
        SocketFile(str(path), 0o600).bind(listen)
    assert path.read_text() == "precious"


def test_a_successors_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first, second = SocketFile(str(path), 0o600), SocketFile(str(path), 0o600)
    first.bind(listen).close()
    with second.bind(listen), socket.socket(socket.AF_UNIX) as caller:
        first.remove()
        caller.connect(str(path))
        second.remove()
    assert not path.exists()


def test_a_bind_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: str) -> None:
        listen(path).close()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        SocketFile(str(tmp_path / "socket"), 0o600).bind(fail)
    assert list(tmp_path.iterdir()) == []
