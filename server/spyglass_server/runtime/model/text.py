"""The text model: a flat batch of tokens in, hidden states out.

The layers read and write keys and values through `KVCache` and `CrossCache`, whose implementations know where these
are stored and which sequence a token belongs to.

A token that sees no image passes through a cross-attention layer unchanged: the reference multiplies both the
attention's and the feed-forward's output by zero. So these layers compute only tokens that see an image, and a batch
without images skips them.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from spyglass_server.planning.division import heads_here, per_rank
from spyglass_server.runtime.config import TextConfig
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.layers import RMSNorm, SwiGLU
from spyglass_server.runtime.ops import ops_of
from spyglass_server.runtime.sharding import sharded_text


class KVCache(Protocol):
    """Keys and values of the sequences in a batch, by layer."""

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Applies the rotary embedding to queries and keys of qkv [tokens, (heads + 2 * kv_heads) * head_dim], stores
        keys and values, and lets each token attend to its own sequence so far: [tokens, heads * head_dim]."""
        ...


class CrossCache(Protocol):
    """Cross-attention states of the images in a batch, and which tokens see them."""

    def select(self, x: Tensor) -> Tensor:
        """Selects from all tokens' states [tokens, hidden] those that cross-attention layers compute: at least those of
        tokens that see an image, in a tensor that may be overwritten."""
        ...

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        """Returns the states of all tokens; those of tokens that see an image come from the selected ones, `seeing`."""
        ...

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of the selected tokens' q [tokens, heads, head_dim], each to the images that it sees."""
        ...


class SelfAttentionLayer(nn.Module):
    """Attention among the tokens of a sequence, and the feed-forward after it."""

    def __init__(self, config: TextConfig, cache_layer: int, mesh: Mesh) -> None:
        super().__init__()
        self.config = config
        self.mesh = mesh
        self.cache_layer = cache_layer
        width = config.num_heads + 2 * config.num_kv_heads
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.qkv = nn.Linear(config.hidden_size, width * config.head_dim, bias=False)
        self.o = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, added: Tensor | None, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Takes the residual stream x float32 [tokens, hidden] and what the previous layer adds to it.

        Returns the stream, and what to add to it.
        """
        x, normed = self.attention_norm.add(x, added)
        attended = self.o(cache.attend(self.cache_layer, self.qkv(normed)))
        x, normed = self.mlp_norm.add(x, self.mesh.sum(attended))
        return x, self.mesh.sum(self.mlp(normed))


class CrossAttentionLayer(nn.Module):
    """Attention of text tokens to the states of the images that they see, behind tanh gates."""

    def __init__(self, config: TextConfig, cache_layer: int, mesh: Mesh) -> None:
        super().__init__()
        self.config = config
        self.mesh = mesh
        self.cache_layer = cache_layer
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.q = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=False)
        self.kv = nn.Linear(config.hidden_size, 2 * config.num_kv_heads * config.head_dim, bias=False)
        self.o = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.attention_gate = nn.Parameter(torch.empty(1))
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.mlp_gate = nn.Parameter(torch.empty(1))

    def image_states(self, image: Tensor) -> Tensor:
        """Keys and values for an image [tokens, hidden]: [2, kv_heads, tokens, head_dim]."""
        kv = self.kv(image).view(image.shape[0], 2, self.config.num_kv_heads, self.config.head_dim)
        k, v = kv.permute(1, 2, 0, 3)
        return torch.stack((self.k_norm(k), v))

    def forward(self, x: Tensor, images: CrossCache) -> Tensor:
        """Takes the residual stream x float32 [tokens, hidden], and returns it."""
        seeing, normed = self.attention_norm.add(images.select(x))
        q = self.q_norm(self.q(normed).view(seeing.shape[0], -1, self.config.head_dim))
        attended = self.mesh.sum(self.o(images.attend(self.cache_layer, q)))
        seeing, normed = self.mlp_norm.add(seeing, attended, self.attention_gate.float().tanh())
        added = self.mesh.sum(self.mlp(normed))
        seeing, _ = self.mlp_norm.add(seeing, added, self.mlp_gate.float().tanh())  # only for the sum
        return images.merge(x, seeing)


class TextModel(nn.Module):
    """All layers, the embedding before them and the head after them.

    On a mesh of several ranks this is one rank's part: some heads, a part of each feed-forward, and a range of the
    vocabulary; `config` has the sizes of this part, except for the vocabulary's, which is the whole model's.
    """

    def __init__(self, config: TextConfig, mesh: Mesh = ALONE) -> None:
        """Takes the configuration of the whole model."""
        super().__init__()
        self.config = own = sharded_text(config, mesh.size)
        self.mesh = mesh
        self.all_heads = config.num_heads
        self.own_heads = heads_here(config.num_heads, config.num_kv_heads, mesh.rank, mesh.size)
        """How many of this rank's heads are the model's; the ones after them are padding."""
        # given a weight, torch draws none: for parameters without memory that would import its compiler
        rows, size = per_rank(config.num_embeddings, mesh.size), config.hidden_size
        self.embedding = nn.Embedding(rows, size, _weight=torch.empty(rows, size))
        layers: list[nn.Module] = []
        for index in range(config.num_layers):
            num_cross = sum(layer < index for layer in config.cross_layers)
            if index in config.cross_layers:
                layers.append(CrossAttentionLayer(own, num_cross, mesh))
            else:
                layers.append(SelfAttentionLayer(own, index - num_cross, mesh))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, per_rank(config.vocab_size, mesh.size), bias=False)

    @property
    def cross_layers(self) -> list[CrossAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, CrossAttentionLayer)]

    def forward(self, tokens: Tensor, cache: KVCache, images: CrossCache | None) -> Tensor:
        """Returns hidden states float32 [tokens, hidden] of flat tokens. `images` is None if no token sees an image."""
        return self.through(self.layers, self._embed(tokens), cache, images)

    def through(self, layers: Iterable[nn.Module], x: Tensor, cache: KVCache, images: CrossCache | None) -> Tensor:
        """Runs hidden states float32 [tokens, hidden] through some of the layers."""
        added: Tensor | None = None
        for layer in layers:
            if isinstance(layer, SelfAttentionLayer):
                x, added = layer(x, added, cache)
            elif images is not None:
                x, added = layer(x if added is None else x + added, images), None
        return x if added is None else x + added

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits of hidden states [rows, hidden], float32 [rows, vocabulary]."""
        own = ops_of(x.device.type).logits(self.head, self.norm(x))
        return self.mesh.join(own)[:, : self.config.vocab_size]

    def _embed(self, tokens: Tensor) -> Tensor:
        """Returns embeddings, float32 [tokens, hidden]."""
        if self.mesh.size == 1:
            whole: Tensor = self.embedding(tokens)
            return whole.float()
        own = tokens - self.mesh.rank * self.embedding.num_embeddings
        is_here = (own >= 0) & (own < self.embedding.num_embeddings)
        found = self.embedding(own.clamp(0, self.embedding.num_embeddings - 1)).float()
        return self.mesh.sum(found * is_here[:, None])
