"""The environment that torchrun sets for the processes it starts, on one machine or several."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One of torchrun's processes; `host` and `port` are those of the store that torchrun runs for them."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    attempt: int
    """How often torchrun has restarted all processes."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Launch | None":
        """Reads the environment; returns None if torchrun has not started this process, or only this one.

        Raises:
            ValueError: torchrun runs no store that its processes can use; the text is for the operator.
        """
        if "TORCHELASTIC_RUN_ID" not in environ or environ["WORLD_SIZE"] == "1":
            return None
        if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError("torchrun does not share its store: unset TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
        return cls(
            rank=int(environ["RANK"]),
            size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_size=int(environ["LOCAL_WORLD_SIZE"]),
            host=environ["MASTER_ADDR"],
            port=int(environ["MASTER_PORT"]),
            attempt=int(environ["TORCHELASTIC_RESTART_COUNT"]),
        )
