"""The process of a rank other than the first.

    python -m spyglass_server.runtime.parallel.follower

reads from standard input what to load and where to meet the first rank. It ends when the first rank is gone, or
standard input closes.
"""

import logging
import os
import pickle
import sys
import threading
from typing import NoReturn

from spyglass_common.logs import set_up_logging
from spyglass_common.memory import return_free_memory
from spyglass_server.process_name import name_process
from spyglass_server.runtime.parallel import meeting
from spyglass_server.runtime.parallel.commands import Compute, CopyPages, DropImage, EncodeImage, TakeImage
from spyglass_server.runtime.parallel.group import Group, Place
from spyglass_server.runtime.parallel.keeper import FAILED, NO_STORE
from spyglass_server.runtime.parallel.watch import Tether
from spyglass_server.runtime.runner import ModelRunner
from spyglass_server.torchrun import Launch

log = logging.getLogger(__name__)

PROCESS_NAME = "spyglass-rank"


def main() -> None:
    """Runs a follower."""
    name_process(PROCESS_NAME)
    source = sys.stdin.buffer
    loader, where, log_style = pickle.load(source)
    set_up_logging(f"rank {where.rank}", log_style)
    threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
    place, tether = _met(where)
    try:
        loaded = loader.load_rank(place, tether)
        return_free_memory()
        follow(*loaded)
    except (ValueError, OSError) as error:
        log.debug("loading failed", exc_info=True)
        tether.fail(str(error))
    except Exception as error:
        log.exception("rank %d has failed", place.rank)
        tether.fail(repr(error))
    os._exit(FAILED)


def follow(runner: ModelRunner, group: Group) -> NoReturn:
    """Executes the first rank's commands until this process ends."""
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


def _met(where: Place | Launch) -> tuple[Place, Tether]:
    if isinstance(where, Place):
        return where, Tether((where.host, where.port), where.rank)
    try:
        return meeting.meet(where)
    except RuntimeError as error:
        log.error("torchrun's store at %s:%d is gone: %s", where.host, where.port, error)
        os._exit(NO_STORE)


def _end_with(source: int) -> None:
    """Ends this process when its parent is gone, even if other threads are waiting."""
    while os.read(source, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
