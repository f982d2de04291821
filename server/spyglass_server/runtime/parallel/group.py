"""How ranks find each other, and the channel on which the first one tells the others what to compute."""

import pickle
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from spyglass_server.runtime.mesh import ProcessMesh

_BACKENDS = {"cuda": "nccl"}
"""What sums tensors on a kind of device; elsewhere gloo."""
_FIRST_BYTES = 1 << 15
"""A command that fits is one message, a longer one two."""
_HEADER_BYTES = 8
_FOREVER = timedelta(days=365)
"""Followers wait for commands as long as nobody asks anything; whether others live is watched apart."""
_JOIN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process among those that compute a model: the address is that of the first rank's store."""

    rank: int
    size: int
    host: str
    port: int


class Group:
    """The processes that compute a model. All must make it, in the same order as anything collective."""

    def __init__(self, place: Place, store: TCPStore, device: torch.device) -> None:
        backend = _BACKENDS.get(device.type, "gloo")
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_FOREVER)
        self.mesh = ProcessMesh()
        self._control = dist.new_group(backend="gloo", timeout=_FOREVER)

    def tell(self, command: object) -> None:
        """Sends a command to all other ranks; only the first may."""
        data = pickle.dumps(command, protocol=pickle.HIGHEST_PROTOCOL)
        message = len(data).to_bytes(_HEADER_BYTES) + data
        first = bytearray(message[:_FIRST_BYTES].ljust(_FIRST_BYTES, b"\0"))
        self._broadcast(torch.frombuffer(first, dtype=torch.uint8))
        if rest := bytearray(message[_FIRST_BYTES:]):
            self._broadcast(torch.frombuffer(rest, dtype=torch.uint8))

    def hear(self) -> object:
        """Waits for the next command of the first rank, which is trusted: it is a part of the same program."""
        first = torch.empty(_FIRST_BYTES, dtype=torch.uint8)
        self._broadcast(first)
        begin = first.numpy().tobytes()
        size = int.from_bytes(begin[:_HEADER_BYTES])
        data = begin[_HEADER_BYTES : _HEADER_BYTES + size]
        if (missing := size - len(data)) > 0:
            rest = torch.empty(missing, dtype=torch.uint8)
            self._broadcast(rest)
            data += rest.numpy().tobytes()
        return pickle.loads(data)

    def least(self, *numbers: int) -> tuple[int, ...]:
        """The least of all ranks' numbers, each."""
        found = torch.tensor(numbers)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self._control)
        return tuple(found.tolist())

    def _broadcast(self, message: Tensor) -> None:
        dist.broadcast(message, 0, group=self._control)


def open_store(place: Place, *, is_first: bool) -> TCPStore:
    """The store at which ranks meet; with port 0 the first rank takes a free one."""
    return TCPStore(place.host, place.port, place.size, is_master=is_first, timeout=_JOIN, wait_for_workers=False)
