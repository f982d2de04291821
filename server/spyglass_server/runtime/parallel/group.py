"""How ranks find each other, and the channel on which the first one sends commands to the others."""

import os
import pickle
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from spyglass_server.runtime.mesh import ProcessMesh
from spyglass_server.runtime.parallel.watch import JOIN_S

_BACKENDS = {"cuda": "nccl"}
"""The backend that sums tensors on a kind of device; gloo elsewhere."""
_FIRST_BYTES = 1 << 15
"""Size of a command's first message; a command that does not fit takes two."""
_HEADER_BYTES = 8
_JOIN = timedelta(seconds=JOIN_S)
_FOREVER = timedelta(days=365)
"""Followers wait for commands for as long as there are no requests; other ranks' liveness is watched separately."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One of the processes that compute a model, and where it meets the first of them.

    `local_rank` and `local_size` count the processes on its machine, `port` is that of the first rank's `Watch`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int = 0

    @property
    def mesh(self) -> ProcessMesh:
        """Cannot sum before its process is in a `Group`."""
        return ProcessMesh(self.rank, self.size)


class Group:
    """The processes that compute a model. All must create it, in the same order as other collectives."""

    def __init__(self, place: Place, store: TCPStore, device: torch.device) -> None:
        backend = _BACKENDS.get(device.type, "gloo")
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_FOREVER)
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
        """Waits for the next command from the first rank, which is trusted: it is part of the same program."""
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
        """Returns the minimum of each number over all ranks."""
        found = torch.tensor(numbers)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self._control)
        return tuple(found.tolist())

    def _broadcast(self, message: Tensor) -> None:
        dist.broadcast(message, 0, group=self._control)


def listen(host: str) -> socket.socket:
    """Returns a socket that listens on a free port of one of this machine's addresses, and nowhere else.

    Raises:
        OSError: the machine has no such address.
    """
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, 0), family=family)


def open_store(place: Place) -> TCPStore:
    """Opens the first rank's store, where processes that sum tensors meet; its `port` is where it listens."""
    listener = listen(place.host)
    port = listener.getsockname()[1]
    return TCPStore(
        place.host, port, place.size, is_master=True, timeout=_JOIN, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def join_store(host: str, port: int) -> TCPStore:
    """Connects to another process's store."""
    return TCPStore(host, port, None, is_master=False, timeout=_JOIN, wait_for_workers=False)


def stay_on_this_machine() -> None:
    """Makes gloo and NCCL listen only on the loopback interface, in this process and those it starts."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, loopback)
