"""Where ranks on several machines meet: the first one publishes in torchrun's store where it watches."""

import logging
import time
from dataclasses import replace

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from spyglass_server.runtime.parallel.group import Place, join_store
from spyglass_server.runtime.parallel.watch import Tether
from spyglass_server.torchrun import Launch

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2


def place_of(launch: Launch) -> Place:
    """Returns the place of a process that torchrun has started; the port to meet at is not known yet."""
    return Place(
        rank=launch.rank,
        size=launch.size,
        local_rank=launch.local_rank,
        local_size=launch.local_size,
        host=launch.host,
    )


def publish(launch: Launch, port: int) -> None:
    """Publishes the port of its machine on which the first rank watches."""
    _store(launch).set(_key(launch), str(port))


def meet(launch: Launch) -> tuple[Place, Tether]:
    """Waits for the first rank. The entry of one that has ended is retried until another replaces it.

    Raises:
        RuntimeError: torchrun's store is gone.
    """
    store, place = _store(launch), place_of(launch)
    while True:
        place = replace(place, port=int(store.get(_key(launch))))
        try:
            return place, Tether((place.host, place.port), place.rank)
        except OSError as error:
            log.debug("there is no first rank at %s:%d yet: %s", place.host, place.port, error)
            time.sleep(_LOOK_AGAIN_S)


def _store(launch: Launch) -> TCPStore:
    return join_store(launch.host, launch.port)


def _key(launch: Launch) -> str:
    return f"spyglass/{launch.attempt}/first"
