"""The structures of kernels.c, in the same order."""

import ctypes
from ctypes import Structure, Union, c_float, c_int, c_long, c_void_p

PRODUCT, NORM, NARROWING, STORING, ATTENTION, JOINING, DRAWING, MOVING, PACKING = range(9)


class Product(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weights", "scales", "out")),
        *((name, c_long) for name in ("rows", "depth", "columns")),
        *((name, c_int) for name in ("form", "is_gated", "has_units")),
    )


class Norm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "added", "gate", "weight", "normed")),
        *((name, c_long) for name in ("rows", "size")),
        ("eps", c_float),
    )


class Narrowing(Structure):
    _fields_ = (("x", c_void_p), ("narrow", c_void_p), ("rows", c_long), ("size", c_long))


class Storing(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "cosine", "sine", "slots", "q", "keys", "values")),
        *((name, c_long) for name in ("tokens", "heads", "kv_heads", "dim")),
        ("form", c_int),
    )


class Reads(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("slots", "begins", "counts", "runs", "parts")),
        *((name, c_long) for name in ("longest", "num_exact", "num_runs", "num_chunks")),
    )


class Attention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("q", "keys", "values", "reads", "out")),
        *((name, c_long) for name in ("heads", "kv_heads", "dim", "q_step", "q_head_step", "step", "head_step")),
        ("scale", c_float),
        *((name, c_int) for name in ("form", "has_units")),
    )


class Drawing(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "rows", "top_ks", "params", "starts", "weights", "out")),
        *((name, c_long) for name in ("draws", "size", "stride")),
    )


class Moving(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("from_", "to", "sources", "targets")),
        *((name, c_long) for name in ("rows", "size")),
    )


class Packing(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("first", "second", "to")),
        *((name, c_long) for name in ("columns", "depth")),
        ("element_bytes", c_int),
    )


class _Arguments(Union):
    _fields_ = (
        ("product", Product),
        ("norm", Norm),
        ("narrowing", Narrowing),
        ("storing", Storing),
        ("attention", Attention),
        ("drawing", Drawing),
        ("moving", Moving),
        ("packing", Packing),
    )


class Operation(Structure):
    """One of the operations above, by its kind."""

    _anonymous_ = ("arguments",)
    _fields_ = (("kind", c_long), ("arguments", _Arguments))


def functions(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the argument and return types of the library's functions."""
    library.run.argtypes, library.run.restype = (c_void_p, c_long, c_int), None
    library.size_of_operation.argtypes, library.size_of_operation.restype = (), c_long
    library.matrix_units.argtypes, library.matrix_units.restype = (), c_int
    return library
