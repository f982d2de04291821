"""The other ranks, as seen by the first: processes that it starts on its own machine, or torchrun's."""

import subprocess
import threading
from dataclasses import replace
from typing import Any, Protocol

import torch

from spyglass_server.runtime.parallel import meeting
from spyglass_server.runtime.parallel.group import (
    LOOPBACK,
    Group,
    Place,
    listen,
    open_store,
    stay_on_this_machine,
)
from spyglass_server.runtime.parallel.keeper import start_follower
from spyglass_server.runtime.parallel.watch import Tether, Watch, end_process
from spyglass_server.runtime.runner import ModelRunner
from spyglass_server.torchrun import Launch


class RankLoader(Protocol):
    """Loads one rank's part; can be pickled."""

    def load_rank(self, place: Place, tether: Tether) -> tuple[ModelRunner, Group]:
        """Joins the group and loads this rank's part.

        Raises:
            ValueError, OSError: the checkpoint or a setting is wrong.
        """
        ...


class Followers:
    """All ranks but the first. When one of them is lost, all on this machine end at once, and so does this process."""

    def __init__(self, loader: RankLoader, size: int, launch: Launch | None = None) -> None:
        """Starts them, unless torchrun has.

        Raises:
            ValueError: torchrun's address is not one of this machine's.
        """
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        if launch:
            self.place = meeting.place_of(launch)
        else:
            stay_on_this_machine()
            self.place = Place(rank=0, size=size, local_rank=0, local_size=size, host=LOOPBACK)
        try:
            listener = listen(self.place.host)
        except OSError as error:
            raise ValueError(f"the first rank cannot listen at {self.place.host}: {error}") from error
        self.place = replace(self.place, port=listener.getsockname()[1])
        self._store = open_store(self.place)
        self._watch = Watch(listener, size, self._store.port, self._end)
        if launch:
            meeting.publish(launch, self.place.port)
        else:
            self._start(loader)

    def gather(self) -> list[Any]:
        """As `Watch.gather`."""
        return self._watch.gather()

    def join(self, device: torch.device) -> Group:
        """Starts computing with them: from now on, losing one ends this process.

        Raises:
            ValueError: one is already lost.
        """
        self._watch.guard()
        return Group(self.place, self._store, device)

    def dismiss(self) -> None:
        """Dismisses them for good."""
        self._watch.dismiss()

    def kill(self) -> None:
        """Kills the ones on this machine, even if they are stopped."""
        for process in self._processes.values():
            process.kill()
            assert process.stdin is not None
            process.stdin.close()

    def _start(self, loader: RankLoader) -> None:
        for rank in range(1, self.place.size):
            self._processes[rank] = start_follower(loader, replace(self.place, rank=rank, local_rank=rank))
        for rank in self._processes:
            threading.Thread(target=self._wait, args=(rank,), name=f"rank-{rank}", daemon=True).start()

    def _wait(self, rank: int) -> None:
        """Reports a rank that ends before it has met the first one; once they have met, the watch notices at once."""
        status = self._processes[rank].wait()
        if not self._watch.has_met(rank):
            self._watch.lose(f"rank {rank} has ended with status {status} before it has come")

    def _end(self, reason: str) -> None:
        self.kill()
        end_process(reason)
