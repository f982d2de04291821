"""An engine with a fault: a real model whose runner fails for requests with a mark in their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from spyglass_server.engine.messages import EngineInfo, ImageKey
from spyglass_server.engine.worker.batch import Row, RowOutput, Runner
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.main import EngineLoader

TOKENS_BEFORE_LATE = 20


class When(Enum):
    """In which rows of a marked request it fails."""

    PREFILL = "prefill"
    FIRST_PREFILL = "the first prefill only"
    LATE = "once its answer has some tokens"
    IMAGE = "the encoding of any image"


@dataclass(frozen=True, kw_only=True)
class FaultyLoader:
    """Loads what `inner` loads. `out_of_memory` says which error it raises."""

    inner: EngineLoader
    mark: int
    when: When
    out_of_memory: bool = False

    def load(self) -> tuple[EngineCore, EngineInfo]:
        core, info = self.inner.load()
        core._runner = _FaultyRunner(core._runner, self)
        return core, info


class _FaultyRunner:
    """Passes everything on but what it fails at."""

    def __init__(self, runner: Runner, fault: FaultyLoader) -> None:
        self._runner = runner
        self._fault = fault
        self._num_failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        if any(map(self._fails, rows)):
            self._fail()
        return self._runner.execute(rows)

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        if self._fault.when is When.IMAGE:
            self._fail()
        return self._runner.encode_image(key, tiles)

    def _fails(self, row: Row) -> bool:
        if self._fault.mark not in row.request.tokens:
            return False
        num_answered = row.end - len(row.request.tokens)
        match self._fault.when:
            case When.PREFILL:
                return num_answered <= 0
            case When.FIRST_PREFILL:
                return num_answered <= 0 and not self._num_failed
            case When.LATE:
                return num_answered > TOKENS_BEFORE_LATE
            case When.IMAGE:
                return False

    def _fail(self) -> None:
        import torch

        self._num_failed += 1
        if self._fault.out_of_memory:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 20.00 GiB in /usr/lib/somewhere.py")
        raise RuntimeError("a fault of this row at 0xdeadbeef")
