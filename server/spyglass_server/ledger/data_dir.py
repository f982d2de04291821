"""The data folder of a server: one server at a time uses it, and it keeps that server's id."""

import fcntl
import secrets
from pathlib import Path
from typing import IO

from spyglass_server.private_file import write_privately

_SERVER_ID = "server-id"


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Locks a data folder, made if necessary, until the returned file is closed or the process ends.

    Raises:
        ValueError: another server uses it.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (data_dir / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another server uses {data_dir}; give each its own --data-dir") from None
    return file


def known_server_id(data_dir: Path) -> str:
    """Returns the id of the server that a data folder belongs to.

    Raises:
        ValueError: no server has used it.
    """
    path = data_dir / _SERVER_ID
    if not path.exists():
        raise ValueError(f"no server has used {data_dir}")
    return path.read_text("ascii").strip()


def read_server_id(data_dir: Path) -> str:
    """Returns the id of the server that a locked data folder belongs to; made at its first start."""
    path = data_dir / _SERVER_ID
    if not path.exists():
        write_privately(path, f"server-{secrets.token_hex(6)}\n")
    return known_server_id(data_dir)
