"""One server for each data folder: two would close each other's records."""

import fcntl
from pathlib import Path
from typing import IO


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Locks a data folder, which is made if need be, until the returned file is closed or the process ends.

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
