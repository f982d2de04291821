"""What torchrun puts into the environment of the processes that it starts, on one machine or several."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A process among those of a torchrun; `host` and `port` are those of the store that torchrun keeps for them."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    attempt: int
    """How often torchrun has started all of them anew."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Launch | None":
        """From the environment; None where torchrun has not started this process, or only this one.

        Raises:
            ValueError: torchrun keeps no store that its processes can use; the text is for the operator.
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
