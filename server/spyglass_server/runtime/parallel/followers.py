"""The ranks behind the first one: processes that it starts on its own machine, and what such a process does.

    python -m spyglass_server.runtime.parallel.followers

reads from standard input what to load and which rank it is, and ends when that closes: the first rank is gone then.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from typing import NoReturn, Protocol

from spyglass_server.runtime.parallel.commands import Compute, CopyPages, DropImage, EncodeImage, TakeImage
from spyglass_server.runtime.parallel.group import Group, Place, open_store
from spyglass_server.runtime.parallel.watch import Lost, Watch, end_process
from spyglass_server.runtime.runner import ModelRunner

log = logging.getLogger(__name__)

_FAILED = 3
"""The exit status of a rank that could not load."""


class RankLoader(Protocol):
    """Loads one rank's part; can be pickled."""

    def load_rank(self, place: Place) -> tuple[ModelRunner, Group]:
        """Joins the group and loads this rank's part.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong.
        """
        ...


class Followers:
    """The followers on this machine. When one of them ends, all do at once, and so does this process."""

    def __init__(self, loader: RankLoader, first: Place, end: Lost = end_process) -> None:
        self._end = end
        level = logging.getLogger().getEffectiveLevel()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, first.size):
            process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE)
            self._processes[rank] = process
            assert process.stdin is not None
            pickle.dump((loader, replace(first, rank=rank), level), process.stdin)
            process.stdin.flush()
        for rank in self._processes:
            threading.Thread(target=self._wait, args=(rank,), name=f"rank-{rank}", daemon=True).start()

    def end(self, reason: str) -> None:
        """Ends them, also those that are stopped, and this process."""
        for process in self._processes.values():
            process.kill()
        self._end(reason)

    def _wait(self, rank: int) -> None:
        process = self._processes[rank]
        status = process.wait()
        self.end(f"rank {rank} (process {process.pid}) has ended with status {status}")


def follow(runner: ModelRunner, group: Group) -> NoReturn:
    """Does what the first rank tells, as long as this process lives."""
    while True:
        match group.hear():
            case TakeImage(image, pixels):
                runner.take_pixels(image, pixels)
            case DropImage(key):
                runner.drop_image(key)
            case EncodeImage(key, tiles):
                runner.encode_image(key, tiles)
            case CopyPages(pairs):
                runner.copy_pages(pairs)
            case Compute(plan):
                runner.follow(plan)


def main() -> None:
    """A follower's life."""
    source = sys.stdin.buffer
    loader, place, level = pickle.load(source)
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s rank {place.rank}: %(message)s")
    threading.Thread(target=_end_with_the_first, args=(source.fileno(),), daemon=True).start()
    try:
        Watch(open_store(place, is_first=False), place.rank, [0])
        follow(*loader.load_rank(place))
    except (ValueError, OSError) as error:
        log.error("rank %d cannot load: %s", place.rank, error)
        os._exit(_FAILED)
    except Exception:
        log.exception("rank %d has failed", place.rank)
        os._exit(_FAILED)


def _end_with_the_first(source: int) -> None:
    """Ends this process when the one that has started it is gone, whatever else waits."""
    while os.read(source, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
