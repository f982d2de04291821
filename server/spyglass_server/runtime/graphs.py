"""CUDA graphs for decode steps: recorded once for a fixed shape, then replayed as a whole.

A replay costs the host the same however many operations it has; launching these one by one is most of a small step's
time on fast devices.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.plan import BatchPlan, GraphShape, Planner

log = logging.getLogger(__name__)

_MIN_CONTEXT = 256
_ALIGNMENT = 64
"""Of image slots: fused kernels want masks whose rows begin at round addresses."""
_MAX_PADDING = 4
"""A graph is not used where it would read more than this many times the slots that the rows need."""
_MAX_RECORDINGS = 64
"""Each keeps memory of its own; steps of further shapes are computed as they come."""

Compute = Callable[[], Tensor]
Record = Callable[[Compute], Compute]
"""Records a computation; the returned one replays it on the current contents of its input tensors.

Raises RecordingFailed when the computation works but cannot be recorded, and whatever the computation raises.
"""


class RecordingFailed(Exception):
    """A device computes something but cannot record it; the text is for the log."""


def record_cuda() -> Record:
    """CUDA's graphs, which share one pool of memory: the result of a replay holds until the next one."""
    pool = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(compute: Compute) -> Compute:
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up, which cannot be recorded
            for _ in range(2):
                compute()
        here = torch.cuda.current_stream()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:  # a capture that fails leaves its stream the current one, hence the stream around it
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=pool, stream=aside):
                result = compute()  # has worked twice, so what fails now is the recording
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises when it was the device that failed
            raise RecordingFailed(str(error)) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record


class DecodeGraphs:
    """The recordings, each made when a step of its shape comes for the first time."""

    def __init__(
        self, compute: Callable[[BatchPlan], Tensor], record: Record, planner: Planner, spare_slot: int
    ) -> None:
        """`compute` makes hidden states [tokens, hidden] of a plan; nobody else uses `spare_slot` of text."""
        self._compute, self._record, self._planner, self._spare_slot = compute, record, planner, spare_slot
        self._steps: dict[GraphShape, tuple[BatchPlan, Compute] | None] = {}  # None: it could not be recorded

    def plan(self, rows: Sequence[Row]) -> BatchPlan | None:
        """The plan of a recorded step, or of one to be recorded, for rows that it suits; else None."""
        if any(len(row.tokens) > 1 for row in rows):
            return None
        images = [self._planner.image_slots(row) for row in rows]
        shape = self._shape([row.end for row in rows], [len(slots) for slots in images])
        if shape is None or not self._suits(shape):
            return None
        return self._planner.decode(rows, images, shape, self._spare_slot)

    def hidden(self, plan: BatchPlan) -> Tensor:
        """Hidden states [rows of its shape, hidden] of a plan that has one; they hold until the next call."""
        shape = plan.shape
        assert shape is not None
        if shape not in self._steps:
            self._steps[shape] = self._try_recording(shape, plan)
        step = self._steps[shape]
        if step is None:
            return self._compute(plan)
        kept, compute = step
        for old, new in zip(_inputs(kept), _inputs(plan), strict=True):
            old.copy_(new)
        return compute()

    def _suits(self, shape: GraphShape) -> bool:
        """Whether steps of this shape are recorded, or may still be."""
        return self._steps[shape] is not None if shape in self._steps else len(self._steps) < _MAX_RECORDINGS

    def _try_recording(self, shape: GraphShape, plan: BatchPlan) -> tuple[BatchPlan, Compute] | None:
        """A recording, or None when the device cannot make it: the same attempt would fail again."""
        try:
            return plan, self._record(partial(self._compute, plan))
        except RecordingFailed:
            log.exception("decode steps of %s cannot be recorded, so their operations are launched one by one", shape)
            return None

    def _shape(self, contexts: Sequence[int], seen: Sequence[int]) -> GraphShape | None:
        """The shape for rows with these context lengths in text and images, padded to powers of two.

        None where that would be much more than the rows need.
        """
        rows, size = _power_of_two(len(contexts)), self._planner.tile_size
        context = _power_of_two(max(_MIN_CONTEXT, *contexts))
        image = _power_of_two(max(seen) // size) * size if any(seen) else 0
        needed = max(sum(contexts), _MIN_CONTEXT * rows), sum(seen)
        if rows * context > _MAX_PADDING * needed[0] or rows * image > _MAX_PADDING * needed[1]:
            return None
        return GraphShape(rows, context, -(-image // _ALIGNMENT) * _ALIGNMENT)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _inputs(plan: BatchPlan) -> list[Tensor]:
    """The tensors of a plan of fixed shape that change from step to step."""
    groups = [*plan.groups, *(plan.cross.groups if plan.cross else ())]
    inside = [tensor for group in groups for tensor in (group.slots, group.mask) if isinstance(tensor, Tensor)]
    index = [plan.cross.index] if plan.cross else []
    return [plan.tokens, plan.positions, plan.slot_mapping, *index, *inside]
