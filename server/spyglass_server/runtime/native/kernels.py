"""The functions of kernels.c, for tensors on the CPU: float32, except for weights and caches.

Each is computed at once, or recorded for a program that runs repeatedly.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from spyglass_server.runtime.native import operations as c
from spyglass_server.runtime.native.compiled import load_library
from spyglass_server.runtime.native.huge_pages import HugePages
from spyglass_server.runtime.native.reads import Reads, RunLengths
from spyglass_server.runtime.sampler import Draw, random_starts

_LANES = {"AVX2": 8, "AVX512": 16}
_COLDEST = 1e-30
"""Minimum temperature: smaller ones change nothing, and this fits a float without counting as zero."""
_UNITS_DEPTH = 32
"""Inputs that matrix units take at once."""
_FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """A weight [columns, in] as `linear` reads it; if gated, those of two layers."""

    weights: Tensor
    scales: Tensor | None
    columns: int
    is_gated: bool
    uses_units: bool


class Buffers:
    """Memory for intermediate results of programs of at most `rows` rows, which share it, since they run in turn."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._tensors: dict[tuple[object, ...], Tensor] = {}
        self._parts = torch.empty(0)

    def take(self, role: str, rows: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Returns room [rows, *shape] that is written only in this role, and read before it is written again."""
        key = role, shape, dtype
        if key not in self._tensors or len(self._tensors[key]) < rows:  # programs keep what they have taken
            room = self.rows if rows <= self.rows else 1 << (rows - 1).bit_length()
            self._tensors[key] = torch.empty(room, *shape, dtype=dtype)
        return self._tensors[key][:rows]

    def take_parts(self, count: int) -> Tensor:
        """Returns room for `count` numbers, until the next call."""
        if len(self._parts) < count:
            self._parts = torch.empty(count)
        return self._parts


class Program:
    """Operations on tensors whose addresses do not change."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._operations: list[c.Operation] = []
        self._held: list[object] = []

    def append(self, operations: Sequence[c.Operation], held: Sequence[object]) -> None:
        """Adds operations, and keeps the objects that they work on alive."""
        self._operations += operations
        self._held += held

    def sealed(self) -> "ctypes.Array[c.Operation]":
        """Returns all operations for `Kernels.run`, valid while this program exists."""
        return (c.Operation * len(self._operations))(*self._operations)


class Kernels:
    """The compiled functions. A row's results do not depend on other rows."""

    def __init__(self, library: ctypes.CDLL, lanes: int) -> None:
        self._library, self._lanes = c.functions(library), lanes
        assert library.size_of_operation() == ctypes.sizeof(c.Operation)
        self._has_units = bool(library.matrix_units())
        self._recorded: Program | None = None
        self._memory = HugePages()

    def pack(self, weights: Sequence[Tensor], scales: Sequence[Tensor] = ()) -> Panels:
        """Lays out a weight [out, in], or two: those of gates and of the gated values.

        Weights are float32, bfloat16, or int8 with scales float32 [out] for each; `in` is even.
        """
        dtype, depth = weights[0].dtype, weights[0].shape[1]
        return Panels(
            weights=self._packed(weights),
            scales=self._packed([one[:, None] for one in scales]) if scales else None,
            columns=len(weights[0]),
            is_gated=len(weights) == 2,
            uses_units=self._has_units and dtype == torch.bfloat16 and depth % _UNITS_DEPTH == 0,
        )

    def _packed(self, columns: Sequence[Tensor]) -> Tensor:
        """Packs one or two tensors [out, in] to [panels, in, outputs of a panel]; in bfloat16, inputs are in pairs."""
        columns = [one.contiguous() for one in columns]
        (count, depth), dtype, width = columns[0].shape, columns[0].dtype, 2 * self._lanes
        panels, in_pairs = -(-count * len(columns) // width), dtype == torch.bfloat16
        shape = (panels, depth // 2, width, 2) if in_pairs else (panels, depth, width)
        packed = self._memory.empty(shape, dtype)
        operation = c.Operation(kind=c.PACKING)
        operation.packing = c.Packing(
            first=columns[0].data_ptr(),
            second=columns[1].data_ptr() if len(columns) == 2 else None,
            to=packed.data_ptr(),
            columns=count,
            depth=shape[1],
            element_bytes=dtype.itemsize * (1 + in_pairs),
        )
        self._do([operation], columns, packed)
        return packed

    def run_lengths(self, heads: int, kv_heads: int, head_dim: int) -> RunLengths:
        """Returns how many tokens of a prompt to compute together in attention with such heads."""
        return RunLengths(lanes=2 * self._lanes, heads=heads, kv_heads=kv_heads, head_dim=head_dim)

    def linear(self, x: Tensor, panels: Panels) -> Tensor:
        """Takes x [rows, in] and returns float32 [rows, columns]; silu(gates) * values if the weight is gated."""
        x = x.float().contiguous()
        rows, depth = x.shape
        operations = []
        if panels.uses_units:
            exact, x = x, self._empty("narrow", rows, depth, dtype=torch.bfloat16)
            operations.append(c.Operation(kind=c.NARROWING))
            operations[0].narrowing = c.Narrowing(x=exact.data_ptr(), narrow=x.data_ptr(), rows=rows, size=depth)
        out = self._empty("gated" if panels.is_gated else "product", rows, panels.columns)
        operation = c.Operation(kind=c.PRODUCT)
        operation.product = c.Product(
            x=x.data_ptr(),
            weights=panels.weights.data_ptr(),
            scales=None if panels.scales is None else panels.scales.data_ptr(),
            out=out.data_ptr(),
            rows=rows,
            depth=depth,
            columns=panels.columns,
            form=_FORMS[panels.weights.dtype],
            is_gated=panels.is_gated,
            has_units=panels.uses_units,
        )
        self._do([*operations, operation], x, out)
        return out

    def add_rms_norm(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `Ops.add_rms_norm`; the sum overwrites x if that is float32."""
        x, added = x.float().contiguous(), None if added is None else added.float().contiguous()
        normed = self._empty("normed", *x.shape)
        operation = c.Operation(kind=c.NORM)
        operation.norm = c.Norm(
            x=x.data_ptr(),
            added=None if added is None else added.data_ptr(),
            gate=None if gate is None else gate.data_ptr(),
            weight=weight.data_ptr(),
            normed=normed.data_ptr(),
            rows=x.shape[0],
            size=x.shape[1],
            eps=eps,
        )
        self._do([operation], x, added, gate, normed)
        return x, normed

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Copies some rows, int64, of x float32 [rows, size]."""
        taken = self._empty("taken", len(rows), x.shape[1])
        self._move(x, taken, len(rows), sources=rows)
        return taken

    def put_rows(self, x: Tensor, rows: Tensor, new: Tensor) -> Tensor:
        """Replaces some rows of x, as `take_rows` takes them, and returns x."""
        self._move(new, x, len(rows), targets=rows)
        return x

    def _move(
        self, x: Tensor, to: Tensor, count: int, *, sources: Tensor | None = None, targets: Tensor | None = None
    ) -> None:
        operation = c.Operation(kind=c.MOVING)
        operation.moving = c.Moving(
            from_=x.data_ptr(),
            to=to.data_ptr(),
            sources=None if sources is None else sources.data_ptr(),
            targets=None if targets is None else targets.data_ptr(),
            rows=count,
            size=x.shape[1],
        )
        self._do([operation], x, to, sources, targets)

    def rotate_and_store(
        self, qkv: Tensor, angles: tuple[Tensor, Tensor], slots: Tensor, stored: tuple[Tensor, Tensor], heads: int
    ) -> Tensor:
        """Rotates queries and keys of qkv [tokens, (heads + 2 * kv_heads) * head_dim] by `rotary_angles`, stores keys
        and values [slots, kv_heads * head_dim] in the tokens' slots, and returns the queries,
        [tokens, heads, head_dim]."""
        qkv, (cos, sin) = qkv.float().contiguous(), angles
        tokens, head_dim = len(qkv), cos.shape[-1]
        q = self._empty("queries", tokens, heads, head_dim)
        operation = c.Operation(kind=c.STORING)
        operation.storing = c.Storing(
            qkv=qkv.data_ptr(),
            cosine=cos.data_ptr(),
            sine=sin.data_ptr(),
            slots=slots.data_ptr(),
            q=q.data_ptr(),
            keys=stored[0].data_ptr(),
            values=stored[1].data_ptr(),
            tokens=tokens,
            heads=heads,
            kv_heads=stored[0].shape[1] // head_dim,
            dim=head_dim,
            form=_FORMS[stored[0].dtype],
        )
        self._do([operation], qkv, cos, sin, slots, q)
        return q

    def attention(self, q: Tensor, stored: tuple[Tensor, Tensor], reads: Reads) -> Tensor:
        """Attention of q [tokens, heads, head_dim] to keys and values [slots, kv_heads, head_dim], which are read in
        place: [tokens, heads * head_dim]."""
        q = q.float()
        tokens, heads, head_dim = q.shape
        assert stored[0].stride() == stored[1].stride()
        assert q.stride(2) == stored[0].stride(2) == 1
        out = self._empty("attended", tokens, heads * head_dim)
        if self._recorded is None:
            reads.make_room(heads * (head_dim + 2))
        attention = c.Attention(
            q=q.data_ptr(),
            keys=stored[0].data_ptr(),
            values=stored[1].data_ptr(),
            reads=ctypes.addressof(reads.raw),
            out=out.data_ptr(),
            heads=heads,
            kv_heads=stored[0].shape[1],
            dim=head_dim,
            q_step=q.stride(0),
            q_head_step=q.stride(1),
            step=stored[0].stride(0),
            head_step=stored[0].stride(1),
            scale=head_dim**-0.5,
            form=_FORMS[stored[0].dtype],
            has_units=self._has_units,
        )
        operations = [c.Operation(kind=kind) for kind in (c.ATTENTION, c.JOINING)]
        for operation in operations:
            operation.attention = attention
        self._do(operations, q, reads, out)
        return out

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """As `sampler.sample_finite`; the rows of the logits need not be contiguous."""
        size, given = logits.shape[1], [draw.params for draw in draws]
        rows, top_ks = (np.array(numbers, np.int32) for numbers in ([d.row for d in draws], [p.top_k for p in given]))
        params = np.array([(p.temperature and max(p.temperature, _COLDEST), p.top_p, p.min_p) for p in given])
        is_random = [not p.greedy for p in given]
        starts = random_starts(draws) if any(is_random) else np.zeros(len(draws), np.int64)
        is_filtered = any(random and (p.top_k or p.top_p < 1) for random, p in zip(is_random, given, strict=True))
        weights = torch.empty((len(draws), size) if is_filtered else 0)
        out = np.empty(len(draws), np.int32)
        operation = c.Operation(kind=c.DRAWING)
        operation.drawing = c.Drawing(
            logits=logits.data_ptr(),
            rows=rows.ctypes.data,
            top_ks=top_ks.ctypes.data,
            params=params.ctypes.data,
            starts=starts.ctypes.data,
            weights=weights.data_ptr(),
            out=out.ctypes.data,
            draws=len(draws),
            size=size,
            stride=logits.stride(0),
        )
        self._do([operation])
        tokens: list[int] = out.tolist()
        return tokens

    @contextmanager
    def recording(self, buffers: Buffers) -> Iterator[Program]:
        """Records the operations that are called meanwhile, instead of computing them."""
        self._recorded = Program(buffers)
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def run(self, operations: "ctypes.Array[c.Operation]") -> None:
        """Computes recorded operations."""
        self._library.run(operations, len(operations), torch.get_num_threads())

    def _empty(self, role: str, rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._recorded is None:
            return torch.empty(rows, *shape, dtype=dtype)
        return self._recorded.buffers.take(role, rows, *shape, dtype=dtype)

    def _do(self, operations: Sequence[c.Operation], *held: object) -> None:
        if self._recorded is None:
            self.run((c.Operation * len(operations))(*operations))
        else:
            self._recorded.append(operations, held)


@cache
def load_kernels(capability: str | None = None) -> Kernels | None:
    """Returns the kernels for this machine, or for a processor with another `capability`; None if unavailable."""
    capability = capability or torch.backends.cpu.get_cpu_capability()
    library = load_library(capability, os.environ)
    return Kernels(library, _LANES[capability]) if library else None
