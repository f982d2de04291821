"""The vision encoder: tiles of images in, one state for each of their patches out.

The reference masks only padding against padding: real patches attend to padding patches and padding tiles, and the
model was trained that way. So all `max_tiles` are encoded. With the real tokens first, that mask becomes two attentions
without a mask: real tokens see everything, padding sees the real tokens.

    tokens  = [ real: tiles x (class + patches) | padding: rest of the real tiles, other tiles ]

A large image takes long, and other work should not wait for all of it: the encoder is a generator that yields after
every slice, a part of the tokens in one layer.
"""

from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.planning.division import per_rank
from spyglass_server.runtime.config import VisionConfig
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.layers import LayerNorm
from spyglass_server.runtime.sharding import sharded_vision

T = TypeVar("T")
Slices = Generator[int, None, T]
"""Work in slices: each yields the floating-point operations that it took, and the last returns the result."""


class VisionAttention(nn.Module):
    """The projections around the attention among the tokens of each image."""

    def __init__(self, config: VisionConfig, mesh: Mesh) -> None:
        super().__init__()
        self.num_heads, self.mesh = config.num_heads, mesh
        width = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.o = nn.Linear(width, config.hidden_size, bias=False)

    def project(self, x: Tensor) -> Tensor:
        """Projects x [images, tokens, hidden] to queries, keys and values [3, images, heads, tokens, head_dim]."""
        out: Tensor = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of some queries to the keys, with the output projection: [images, queries, hidden]."""
        return self.mesh.sum(self.o(self.find(q, k, v)))

    def find(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same before the output projection: [images, queries, heads * head_dim]."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class VisionLayer(nn.Module):
    """One encoder layer; the layers of the global encoder are gated."""

    def __init__(self, config: VisionConfig, mesh: Mesh, gated: bool) -> None:
        super().__init__()
        self.mesh = mesh
        self.attention = VisionAttention(config, mesh)
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.mlp_norm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention_gate = nn.Parameter(torch.empty(1)) if gated else None
        self.mlp_gate = nn.Parameter(torch.empty(1)) if gated else None

    def forward(self, x: Tensor, num_real: int, num_tokens: int) -> Slices[Tensor]:
        """Takes x float32 [images, tokens, hidden], whose first `num_real` tokens are real; `num_tokens` per slice."""
        images, tokens, hidden = x.shape
        weight, heads = self.attention.o.weight, self.attention.num_heads
        width = weight.shape[1]
        qkv = weight.new_empty(3, images, heads, tokens, width // heads)
        for begin, end in _pieces(num_real, tokens, num_tokens):
            qkv[:, :, :, begin:end] = self.attention.project(self.attention_norm(x[:, begin:end]))
            yield 6 * images * (end - begin) * width * hidden
        q, k, v = qkv[0], qkv[1], qkv[2]
        out = torch.empty_like(x)
        for begin, end in _pieces(num_real, tokens, num_tokens):
            seen = _num_seen(begin, num_real, tokens)
            attended = self.attention.attend(q[:, :, begin:end], k[:, :, :seen], v[:, :, :seen])
            piece = x[:, begin:end] + _gated(self.attention_gate, attended)
            fed_forward = self.mesh.sum(self.fc2(F.gelu(self.fc1(self.mlp_norm(piece)))))
            out[:, begin:end] = piece + _gated(self.mlp_gate, fed_forward)
            yield images * (end - begin) * (4 * width * seen + 2 * hidden * (width + 2 * self.fc1.out_features))
        return out


def _pieces(num_real: int, num_tokens: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields real tokens, then padding, in pieces of at most `size`: each begin … end - 1."""
    for first, last in ((0, num_real), (num_real, num_tokens)):
        for begin in range(first, last, size):
            yield begin, min(begin + size, last)


def _num_seen(token: int, num_real: int, num_tokens: int) -> int:
    """How many tokens, from the first on, a token sees."""
    return num_tokens if token < num_real else num_real


def _gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.float().tanh() * x


class VisionEncoder(nn.Module):
    """Encoder and projector: from tiles to states in the text model's hidden size.

    On a mesh of several ranks each has some heads and a part of each feed-forward.
    """

    def __init__(self, config: VisionConfig, text_hidden_size: int, mesh: Mesh = ALONE) -> None:
        super().__init__()
        own = sharded_vision(config, mesh.size)
        self.config = config
        size, tiles, tokens = config.hidden_size, config.max_tiles, config.tokens_per_tile
        ratios = len(config.aspect_ratios) + 1
        self.mesh = mesh
        self.patch = nn.Linear(3 * config.patch_size**2, per_rank(size, mesh.size), bias=False)
        self.class_embedding = nn.Parameter(torch.empty(size))
        self.position = nn.Parameter(torch.empty(tokens, size))
        self.position_gate = nn.Parameter(torch.empty(1))
        self.tile_position = nn.Parameter(torch.empty(ratios, tiles, tokens, size))
        self.pre_tile = nn.Parameter(torch.empty(ratios, tiles, size))
        self.pre_tile_gate = nn.Parameter(torch.empty(1))
        self.post_tile = nn.Parameter(torch.empty(ratios, tiles, size))
        self.post_tile_gate = nn.Parameter(torch.empty(1))
        self.pre_norm = LayerNorm(size)
        self.post_norm = LayerNorm(size)
        self.layers = nn.ModuleList(VisionLayer(own, mesh, gated=False) for _ in range(config.num_layers))
        self.global_layers = nn.ModuleList(VisionLayer(own, mesh, gated=True) for _ in range(config.num_global_layers))
        self.projector = nn.Linear(per_rank(config.output_size, mesh.size), text_hidden_size)

    def forward(self, pixels: Tensor, rows: int, columns: int, num_tokens: int) -> Slices[Tensor]:
        """Encodes images that have the same canvas, in slices of `num_tokens` tokens in a layer.

        pixels: [images, rows * columns, 3, tile, tile], normalised.
        Returns [images, tiles * tokens per tile, text hidden].
        """
        features = yield from self.features(pixels, rows, columns, num_tokens)
        width = self.projector.in_features
        begin = self.mesh.rank * width
        own = features[..., begin : begin + width]
        if width > own.shape[-1]:
            own = F.pad(own, (0, width - own.shape[-1]))
        own = own.to(self.projector.weight.dtype)
        pieces = []
        for piece in torch.split(own, num_tokens, dim=1):
            pieces.append(self.mesh.sum(self.projector(piece)).to(own.dtype))
            yield 2 * piece.numel() * self.projector.out_features
        return torch.cat(pieces, dim=1)

    def features(self, pixels: Tensor, rows: int, columns: int, num_tokens: int) -> Slices[Tensor]:
        """Returns what the projector reads, float32 [images, tiles * tokens per tile, output size].

        The final states come first, then the intermediate ones, channel by channel.
        """
        ratio = self.config.aspect_ratio_id(rows, columns)
        x, tile_of, num_real = self._real_first(self._embed(pixels, ratio).float(), pixels.shape[1])
        yield 2 * x.numel() * self.patch.in_features
        images, _, hidden = x.shape
        found = x.new_empty(images, num_real, self.config.output_size)
        # the states of one channel are adjacent: [images, tokens, hidden, states]
        states = found[..., hidden:].view(images, num_real, hidden, len(self.config.intermediate_layers))
        for i, layer in enumerate(self.layers):
            if i in self.config.intermediate_layers:
                states[..., self.config.intermediate_layers.index(i)] = x[:, :num_real]
            x = yield from layer(x, num_real, num_tokens)
        x = self.post_norm(x).float() + (self.post_tile[ratio] * self.post_tile_gate.tanh())[tile_of]
        for layer in self.global_layers:
            x = yield from layer(x, num_real, num_tokens)
        found[..., :hidden] = x[:, :num_real]
        return found

    def _embed(self, pixels: Tensor, ratio: int) -> Tensor:
        """Embeds all tiles, including padding tiles: [images, max_tiles, tokens per tile, hidden]."""
        config = self.config
        images, tiles = pixels.shape[:2]
        padding = pixels.new_zeros(images, config.max_tiles - tiles, *pixels.shape[2:])
        every = torch.cat((pixels, padding), dim=1).flatten(0, 1)
        patches = F.unfold(every, config.patch_size, stride=config.patch_size).transpose(1, 2)
        x = self.mesh.join(self.patch(patches).flatten(0, 1))[:, : config.hidden_size]
        x = x.reshape(images, config.max_tiles, -1, config.hidden_size)
        x = x + (self.pre_tile[ratio] * self.pre_tile_gate.tanh())[:, None]
        x = torch.cat((self.class_embedding.expand(images, config.max_tiles, 1, -1), x), dim=2)
        gate = self.position_gate.tanh()
        x = x + self.position * (1 - gate)
        out: Tensor = self.pre_norm(x + self.tile_position[ratio] * gate)
        return out

    def _real_first(self, x: Tensor, num_tiles: int) -> tuple[Tensor, Tensor, int]:
        """Pads each tile to a multiple of 8 tokens and puts the real tokens first.

        Returns [images, all tokens, hidden], the tile of each token, and the number of real ones. A tile whose token
        count is already a multiple of 8 gets 8 more, as in the reference.
        """
        _, max_tiles, tokens, _ = x.shape
        x = F.pad(x, (0, 0, 0, 8 - tokens % 8))
        tile_of = torch.arange(max_tiles, device=x.device)[:, None].expand(x.shape[1:3])
        parts = [(slice(num_tiles), slice(tokens)), (slice(num_tiles), slice(tokens, None)), (slice(num_tiles, None),)]
        joined = torch.cat([x[:, *part].flatten(1, 2) for part in parts], dim=1)
        tiles = torch.cat([tile_of[part].flatten() for part in parts])
        return joined, tiles, num_tiles * tokens


def check_vision_config(config: VisionConfig) -> None:
    """Raises ValueError if the parts of the configuration do not fit together."""
    layers = config.intermediate_layers
    if any(a >= b for a, b in pairwise(layers)) or not all(0 <= i < config.num_layers for i in layers):
        raise ValueError(f"intermediate_layers_indices {list(layers)} are not ascending layers of the encoder")
    expected = config.hidden_size * (1 + len(layers))
    if config.output_size != expected:
        raise ValueError(f"vision_output_dim is {config.output_size}, but the encoder's states make {expected}")


def whole(slices: Slices[T]) -> T:
    """Runs all slices at once and returns the result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
