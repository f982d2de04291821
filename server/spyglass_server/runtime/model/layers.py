"""Pieces that several layers share: norms, feed-forward, rotary embedding, grouped attention.

The residual stream is float32 in every precision: norms read it and return the weights' dtype, and what layers add to
it is promoted. That costs next to nothing, and in bfloat16 it avoids most of the reference's rounding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.runtime.config import RopeConfig
from spyglass_server.runtime.ops import ops_of


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension: float32 inside, the weights' dtype outside."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the norm of x [..., size]."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # a view where only one head lies between its rows
        return self.add(rows)[1].view(x.shape)

    def add(self, x: Tensor, added: Tensor | None = None, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adds `added`, times `gate` if there is one, to the residual stream x [rows, size].

        Returns the sum, which may overwrite x, and its norm.
        """
        return ops_of(x.device.type).add_rms_norm(x, added, gate, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension: float32 inside, the weights' dtype outside."""

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(self.weight.dtype)


class SwiGLU(nn.Module):
    """The text model's feed-forward; gate and up projections are one matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(ops_of(x.device.type).silu_mul(self.gate_up(x)))
        return hidden


def rotary_frequencies(config: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    """The angle per position of each pair of dimensions, float32 [head_dim / 2].

    Llama 3 stretches the long wavelengths by `factor`, leaves the short ones, and blends between.
    Source: apply_scaling in Meta's llama3/model.py.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.factor == 1.0:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    longest = config.original_max_position / config.low_freq_factor
    shortest = config.original_max_position / config.high_freq_factor
    blend = (config.original_max_position / wavelengths - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    blended = (1 - blend) * frequencies / config.factor + blend * frequencies
    stretched = torch.where(wavelengths > longest, frequencies / config.factor, frequencies)
    return torch.where((wavelengths >= shortest) & (wavelengths <= longest), blended, stretched)


def rotary_angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`, each float32 [tokens, 1, head_dim], of positions [tokens].

    The sines of the first half are negative: dimension i pairs with i + head_dim / 2, as in Hugging Face checkpoints.
    """
    angles = torch.outer(positions.float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding to x [tokens, heads, head_dim], with the `rotary_angles` of its tokens."""
    exact = x.float()
    return torch.addcmul(exact * cos, exact.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention in which several query heads share a key head.

    q [rows, tokens, heads, head_dim], k and v [rows, kv_heads, context, head_dim]. The mask is added to the scores:
    [tokens, context], or [rows, 1, 1, context] with one token per row. Without a mask each token sees all keys or, if
    `is_causal`, with as many tokens as keys, those up to its own. Returns [rows * tokens, heads * head_dim].
    """
    rows, tokens, heads, head_dim = q.shape
    kv_heads, context = k.shape[1:3]
    shared = heads // kv_heads
    if tokens == 1:  # the heads of a group act as tokens, so nothing needs to be repeated
        return F.scaled_dot_product_attention(q.view(rows, kv_heads, shared, head_dim), k, v, mask).reshape(rows, -1)
    grouped = q.view(rows, tokens, kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4).flatten(0, 1)
    k, v = (x.flatten(0, 1)[:, None].expand(rows * kv_heads, shared, context, head_dim) for x in (k, v))
    out = F.scaled_dot_product_attention(grouped, k, v, mask, is_causal=is_causal)
    return out.view(rows, kv_heads, shared, tokens, head_dim).permute(0, 3, 1, 2, 4).reshape(rows * tokens, -1)
