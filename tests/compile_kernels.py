"""Compiles every kernel for a GPU of compute capability 9.0, with the shapes of the 11B model; needs no GPU.

Prints a line for each: its name, the bytes of its binary, and its shared memory in bytes.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spyglass_server.runtime.kernels import launch
from spyglass_server.runtime.kernels.attention import decode_attention, prefill_attention
from spyglass_server.runtime.kernels.layers import add_rms_norm, resolve_tokens, rotate_and_store, silu_mul, to_fp8
from spyglass_server.runtime.kernels.products import fp8_weight_product
from spyglass_server.runtime.kernels.sampling import sample_tokens

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
COMPILER_OPTIONS = ("num_warps", "num_stages")
TARGET = GPUTarget("cuda", 90, 32)
BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32


def compile_instead(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Stands in for the start of a kernel."""
    names = kernel.arg_names
    signature = {name: type_of(argument) for name, argument in zip(names, arguments, strict=False)}
    constants = {(names.index(name),): value for name, value in options.items() if name not in COMPILER_OPTIONS}
    signature |= {names[at]: "constexpr" for (at,) in constants}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    found = triton.compile(
        source, target=TARGET, options={name: options[name] for name in COMPILER_OPTIONS if name in options}
    )
    print(kernel.__name__, len(found.asm["cubin"]), found.metadata.shared, flush=True)


def type_of(argument: object) -> str:
    if isinstance(argument, Tensor):
        return f"*{TYPES[argument.dtype]}"
    return "i32" if isinstance(argument, int) else "fp32"


def on_device(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def main() -> None:
    launch.start = compile_instead
    rows, heads, kv_heads, head_dim, hidden, vocabulary = 8, 32, 8, 128, 4096, 128_256
    q = on_device(rows, heads, head_dim, dtype=BF16)
    k, v = (on_device(1000, kv_heads * head_dim, dtype=BF16) for _ in range(2))
    tables, reads = on_device(64, 2048, dtype=I32), on_device(3, rows, dtype=I32)
    decode_attention(q, k, v, tables, reads, 16)
    decode_attention(q, k, v, tables, reads, 1601)
    blocks, out = on_device(5, 2, dtype=I32), on_device(rows, heads * head_dim, dtype=BF16)
    prefill_attention(q, k, v, tables, blocks, out, 16, is_causal=True)
    prefill_attention(q, k, v, tables, blocks, out, 1601, is_causal=False)
    prefill_attention(q.float(), k.float(), v.float(), tables, blocks, out.float(), 16, is_causal=True)
    x, weight = on_device(rows, hidden, dtype=F32), on_device(hidden, dtype=BF16)
    add_rms_norm(x, x.bfloat16(), None, weight, 1e-5)
    add_rms_norm(x, x.bfloat16(), x[0, :1], weight, 1e-5)
    add_rms_norm(x.bfloat16(), None, None, weight, 1e-5)
    positions, frequencies = on_device(rows, dtype=I32), on_device(head_dim // 2, dtype=F32)
    qkv = on_device(rows, (heads + 2 * kv_heads) * head_dim, dtype=BF16)
    rotate_and_store(qkv, positions, frequencies, positions, k, v, heads)
    silu_mul(on_device(rows, 2 * 14_336, dtype=BF16))
    resolve_tokens(positions, positions)
    to_fp8(x.bfloat16())
    small = on_device(14_336, hidden, dtype=torch.float8_e4m3fn)
    fp8_weight_product(x.bfloat16(), small, on_device(1, 14_336, dtype=F32))
    params, starts = on_device(rows, 3, dtype=torch.float64), on_device(rows, dtype=torch.int64)
    sample_tokens(on_device(rows, vocabulary, dtype=F32), positions, params, positions, starts, positions)


if __name__ == "__main__":
    main()
