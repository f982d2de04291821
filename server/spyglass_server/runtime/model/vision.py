"""The vision encoder: tiles of images in, one state for each of their patches out.

Owns the encoder's order of operations. Knows nothing of text, batches or caches.

The reference masks only padding against padding: real patches attend to padding patches and padding
tiles, and the model was trained that way. So all `max_tiles` are encoded. With the real tokens put
first that mask is two attentions without one: real tokens see everything, padding sees the real.

    tokens  = [ real: tiles x (class + patches) | padding: rest of the real tiles, other tiles ]
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.runtime.config import VisionConfig
from spyglass_server.runtime.model.layers import LayerNorm


class VisionAttention(nn.Module):
    """Attention among the tokens of each image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, num_real: int) -> Tensor:
        """x [images, tokens, hidden], of whose tokens the first `num_real` are real."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        real = F.scaled_dot_product_attention(q[:, :, :num_real], k, v)
        padding = F.scaled_dot_product_attention(q[:, :, num_real:], k[:, :, :num_real], v[:, :, :num_real])
        joined = torch.cat((real, padding), dim=2).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.o(joined)
        return out


class VisionLayer(nn.Module):
    """One encoder layer; the layers of the global encoder are gated."""

    def __init__(self, config: VisionConfig, gated: bool) -> None:
        super().__init__()
        self.attention = VisionAttention(config)
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.mlp_norm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention_gate = nn.Parameter(torch.empty(1)) if gated else None
        self.mlp_gate = nn.Parameter(torch.empty(1)) if gated else None

    def forward(self, x: Tensor, num_real: int) -> Tensor:
        x = x + _gated(self.attention_gate, self.attention(self.attention_norm(x), num_real))
        return x + _gated(self.mlp_gate, self.fc2(F.gelu(self.fc1(self.mlp_norm(x)))))


def _gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.float().tanh() * x


class VisionEncoder(nn.Module):
    """Encoder and projector: from tiles to states in the text model's hidden size."""

    def __init__(self, config: VisionConfig, text_hidden_size: int) -> None:
        super().__init__()
        self.config = config
        size, tiles, tokens = config.hidden_size, config.max_tiles, config.tokens_per_tile
        ratios = len(config.aspect_ratios) + 1
        self.patch = nn.Linear(3 * config.patch_size**2, size, bias=False)
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
        self.layers = nn.ModuleList(VisionLayer(config, gated=False) for _ in range(config.num_layers))
        self.global_layers = nn.ModuleList(VisionLayer(config, gated=True) for _ in range(config.num_global_layers))
        self.projector = nn.Linear(config.output_size, text_hidden_size)

    def forward(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """Encodes images that have the same canvas.

        pixels: [images, rows * columns, 3, tile, tile], normalised.
        Returns [images, tiles * tokens a tile, text hidden].
        """
        features = self.features(pixels, rows, columns)
        out: Tensor = self.projector(features.to(self.projector.weight.dtype))
        return out

    def features(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """What the projector reads, float32 [images, tiles * tokens a tile, output size].

        The final states come first, then the intermediate ones, channel by channel.
        """
        ratio = self.config.aspect_ratio_id(rows, columns)
        x = self._embed(pixels, ratio)
        x, tile_of, num_real = self._real_first(x.float(), pixels.shape[1])
        intermediate = []
        for i, layer in enumerate(self.layers):
            if i in self.config.intermediate_layers:
                intermediate.append(x[:, :num_real])
            x = layer(x, num_real)
        x = self.post_norm(x) + (self.post_tile[ratio] * self.post_tile_gate.tanh())[tile_of]
        for layer in self.global_layers:
            x = layer(x, num_real)
        # the states of one channel lie side by side: [images, tokens, hidden, states]
        return torch.cat((x[:, :num_real], torch.stack(intermediate, dim=-1).flatten(2)), dim=-1)

    def _embed(self, pixels: Tensor, ratio: int) -> Tensor:
        """Embeds all tiles, padding tiles too: [images, max_tiles, tokens a tile, hidden]."""
        config = self.config
        images, tiles = pixels.shape[:2]
        padding = pixels.new_zeros(images, config.max_tiles - tiles, *pixels.shape[2:])
        every = torch.cat((pixels, padding), dim=1).flatten(0, 1)
        patches = F.unfold(every, config.patch_size, stride=config.patch_size).transpose(1, 2)
        x = self.patch(patches).view(images, config.max_tiles, -1, config.hidden_size)
        x = x + (self.pre_tile[ratio] * self.pre_tile_gate.tanh())[:, None]
        x = torch.cat((self.class_embedding.expand(images, config.max_tiles, 1, -1), x), dim=2)
        gate = self.position_gate.tanh()
        x = x + self.position * (1 - gate)
        out: Tensor = self.pre_norm(x + self.tile_position[ratio] * gate)
        return out

    def _real_first(self, x: Tensor, num_tiles: int) -> tuple[Tensor, Tensor, int]:
        """Pads each tile to a multiple of 8 tokens and puts the real tokens first.

        Returns [images, all tokens, hidden], the tile of each token, and the number of real ones. A tile
        whose tokens are a multiple of 8 already gets 8 more, as in the reference.
        """
        _, max_tiles, tokens, _ = x.shape
        x = F.pad(x, (0, 0, 0, 8 - tokens % 8))
        tile_of = torch.arange(max_tiles, device=x.device)[:, None].expand(x.shape[1:3])
        parts = [(slice(num_tiles), slice(tokens)), (slice(num_tiles), slice(tokens, None)), (slice(num_tiles, None),)]
        joined = torch.cat([x[:, *part].flatten(1, 2) for part in parts], dim=1)
        tiles = torch.cat([tile_of[part].flatten() for part in parts])
        return joined, tiles, num_tiles * tokens


def check_vision_config(config: VisionConfig) -> None:
    """Raises ValueError when the parts of the configuration do not fit together."""
    layers = config.intermediate_layers
    if any(a >= b for a, b in pairwise(layers)) or not all(0 <= i < config.num_layers for i in layers):
        raise ValueError(f"intermediate_layers_indices {list(layers)} are not ascending layers of the encoder")
    expected = config.hidden_size * (1 + len(layers))
    if config.output_size != expected:
        raise ValueError(f"vision_output_dim is {config.output_size}, but the encoder's states make {expected}")
