"""Decode steps recorded for fixed shapes when the engine starts, and replayed as a whole.

A replay costs the host the same for any number of operations; launching them one by one takes most of a small step's
time on fast devices.
"""

import logging
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from spyglass_server.runtime.cuda.device import Compute, RecordingFailed
from spyglass_server.runtime.cuda.plan import GraphShape

log = logging.getLogger(__name__)

_LOG_S = 2.0
"""How often progress is logged."""


class DecodeGraphs:
    """The recordings, by shape."""

    def __init__(self, record: Callable[[Compute], Compute]) -> None:
        self._record = record
        self._recorded: dict[GraphShape, Compute] = {}

    @property
    def shapes(self) -> set[GraphShape]:
        return set(self._recorded)

    def record(self, shapes: Sequence[GraphShape], prepared: Callable[[GraphShape], Compute]) -> None:
        """Records steps; `prepared` puts a shape's numbers on the device and returns its computation.

        Shapes that cannot be recorded are left out: their steps are computed operation by operation. Raises whatever
        computing them raises.
        """
        began = logged = time.monotonic()
        for done, shape in enumerate(shapes):
            if time.monotonic() - logged > _LOG_S:
                logged = time.monotonic()
                log.info("recording decode steps: %d of %d shapes", done, len(shapes))
            try:
                self._recorded[shape] = self._record(prepared(shape))
            except RecordingFailed:
                log.exception("decode steps of %s cannot be recorded, which makes them slower; no more is tried", shape)
                return
        log.info("recorded decode steps of %d shapes in %.1f s", len(shapes), time.monotonic() - began)

    def replay(self, shape: GraphShape) -> Tensor:
        """Returns logits float32 [rows of the shape, vocabulary], which are valid until the next call."""
        return self._recorded[shape]()
